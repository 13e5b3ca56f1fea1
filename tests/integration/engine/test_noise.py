import math

import torch

from shared.engine.noise import GumbelNoise, stream_key


def split_mix(state: int) -> int:
    """SplitMix64's output for a state, as published, in exact integers."""
    word = state % 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def test_noise_is_the_published_generator_whatever_the_word_size_of_the_arithmetic():
    key = stream_key(2**62 + 5, 17)
    noise = GumbelNoise(1000, torch.device("cpu")).rows([key])[0]
    for token in (0, 1, 500, 999):
        uniform = ((split_mix(key + (token + 1) * 0x9E3779B97F4A7C15) >> 24) + 0.5) / 2**40
        assert math.isclose(noise[token].item(), -math.log(-math.log1p(-uniform)), rel_tol=1e-4, abs_tol=1e-5)


def test_noise_is_gumbel_distributed_and_streams_are_unrelated():
    noise = GumbelNoise(100_000, torch.device("cpu")).rows([stream_key(0, 0), stream_key(0, 1), stream_key(1, 0)])
    assert torch.isfinite(noise).all()
    assert (noise.mean(-1) - 0.5772).abs().max() < 0.02  # Euler's constant
    assert (noise.var(-1) - math.pi**2 / 6).abs().max() < 0.05
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 0.02


def test_keys_differ_between_seeds_and_indices():
    keys = {stream_key(seed, index) for seed in (0, 1, 2, 2**63 - 1) for index in range(200)}
    assert len(keys) == 800
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_a_row_is_the_same_beside_others():
    noise = GumbelNoise(300, torch.device("cpu"))
    keys = [stream_key(seed, 3) for seed in range(4)]
    assert torch.equal(noise.rows(keys)[2], noise.rows([keys[2]])[0])
