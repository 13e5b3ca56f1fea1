"""Every family gives what transformers gives."""

import pytest
import torch

from shared.engine import device
from shared.engine.batch import lay_out
from shared.engine.models.llama import RmsNorm
from shared.engine.pieces import Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.sampling import Sampling
from tests.generation import GREEDY, generate
from tests.models import FAMILIES

LENGTHS = (1, 5, 16, 17, 40, 63)
PROMPTS = [[6 + (i * i * 7 + i * 13 + length * 31) % 250 for i in range(length)] for length in LENGTHS]


def all_logits(engine: Engine, tokens: list[int]) -> torch.Tensor:
    blocks = list(range(len(tokens) // engine.block_tokens, -1, -1))
    batch = lay_out([Piece(tokens, 0, blocks, None)], engine.block_tokens)
    with torch.inference_mode():
        return engine._logits(batch, list(range(len(tokens))))


def expected_tokens(model, prompt: list[int], tokens: int) -> list[int]:
    given = torch.tensor([prompt])
    output = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=2,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, load_engine, reference):
    prompt = PROMPTS[-1]
    with torch.inference_mode():
        expected = reference(family)(torch.tensor([prompt])).logits[0]
    difference = (all_logits(load_engine(family), prompt) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_64_greedy_tokens_are_those_of_transformers_alone_and_in_a_mixed_batch(family: str, load_engine, reference):
    engine = load_engine(family)
    together = generate(engine, PROMPTS, 64)
    for prompt, answer in zip(PROMPTS[1::2], together[1::2], strict=True):
        assert answer == expected_tokens(reference(family), prompt, 64)
    assert generate(engine, [PROMPTS[3]], 64) == [together[3]]


@pytest.mark.parametrize("family", ["llama3", "qwen3", "opt", "gpt2"])
def test_a_prompt_in_chunks_beside_others_decoding_gives_the_same_tokens(family: str, load_engine):
    engine = load_engine(family)
    assert generate(engine, PROMPTS, 24, chunk=7) == generate(engine, PROMPTS, 24)


def test_a_chunk_longer_than_one_tile_of_queries_gives_the_same_tokens(load_engine):
    prompt = [6 + i % 250 for i in range(400)]
    engine = load_engine("llama")
    whole = generate(engine, [prompt], 8)
    assert generate(engine, [prompt], 8, chunk=380) == whole
    assert generate(engine, [prompt], 8, chunk=20) == whole


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_tokens=100, seed=11, temperature=0.9, top_p=0.95)])
def test_an_answer_resumed_in_another_attempt_goes_on_as_it_would_have(sampling: Sampling, load_engine):
    engine = load_engine("llama")
    [whole] = generate(engine, [PROMPTS[4]], 30, [sampling])
    assert generate(engine, [PROMPTS[4]], 30, [sampling], resumed=whole[:13]) == [whole]


def test_a_sampled_answer_is_the_same_alone_and_in_a_batch_of_16(load_engine):
    engine = load_engine("qwen2")
    prompts = [[6 + (i * 11 + n * 17) % 250 for i in range(3 + 2 * n)] for n in range(16)]
    samplings = [
        Sampling(max_tokens=100, seed=n, temperature=0.7 + n / 20, top_k=40 * (n % 2), top_p=0.9, presence_penalty=0.3)
        for n in range(16)
    ]
    together = generate(engine, prompts, 24, samplings)
    assert [generate(engine, [prompts[n]], 24, [samplings[n]])[0] for n in (0, 5, 15)] == [
        together[n] for n in (0, 5, 15)
    ]
    assert len({tuple(answer) for answer in together}) == 16


@pytest.mark.parametrize("instructions", [True, False])
def test_low_precision_stays_near_float32(instructions: bool, model_folder, load_engine, monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16_instructions", lambda: instructions)
    prompt = PROMPTS[-1]
    exact = all_logits(load_engine("llama"), prompt)
    engine = Engine.load(EngineSettings(model=str(model_folder("llama")), blocks=32, dtype="bfloat16"))
    assert engine.cache.pool.dtype == torch.bfloat16
    rounded = all_logits(engine, prompt)
    assert (rounded - exact).norm() / exact.norm() < 0.05
    assert rounded.dtype == torch.float32


def test_rms_norm_in_few_passes_equals_its_plain_twin():
    torch.manual_seed(0)
    norm = RmsNorm(torch.randn(64), 1e-5, None)
    x = torch.randn(7, 64) * torch.logspace(-3, 3, 7)[:, None]
    expected = torch.nn.functional.rms_norm(x, (64,), norm.weight, norm.eps)
    torch.testing.assert_close(norm.in_few_passes(x), expected, rtol=1e-5, atol=1e-6)
