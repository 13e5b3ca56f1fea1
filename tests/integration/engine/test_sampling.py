"""What each sampling field does to a draw."""

import math
from collections import Counter

import pytest
import torch

from shared.engine import sampling as sampling_module
from shared.engine.pieces import Draw, Drawn
from shared.engine.sampling import NotFinite, Sampler
from shared.specs.sampling import Sampling

VOCABULARY = 50
CPU = torch.device("cpu")


def draw(logits: torch.Tensor, *draws: Draw) -> list[Drawn]:
    return Sampler(logits.shape[1], CPU).draw(logits.clone(), draws)


def tokens(logits: torch.Tensor, sampling: Sampling, count: int = 2000) -> Counter[int]:
    """How often each token is drawn, by `count` seeds."""
    from msgspec.structs import replace

    rows = logits.expand(count, -1)
    draws = [Draw(replace(sampling, seed=seed), [], []) for seed in range(count)]
    return Counter(drawn.token for drawn in draw(rows, *draws))


def falling_logits() -> torch.Tensor:
    """Token i has probability proportional to 2 ** -i."""
    return -math.log(2) * torch.arange(VOCABULARY, dtype=torch.float32)[None]


def sampled(**fields) -> Sampling:
    return Sampling(max_tokens=100, **fields)


def greedy(**fields) -> Sampling:
    return Sampling(max_tokens=100, temperature=0.0, **fields)


def test_temperature_zero_takes_the_likeliest_token():
    logits = torch.randn(6, VOCABULARY)
    drawn = draw(logits, *[Draw(greedy(seed=row), [], []) for row in range(6)])
    assert [d.token for d in drawn] == logits.argmax(-1).tolist()


def test_draws_follow_the_softmax_of_the_logits():
    counts = tokens(falling_logits(), sampled(), count=8000)
    for token, share in enumerate((1 / 2, 1 / 4, 1 / 8, 1 / 16)):
        deviation = math.sqrt(share * (1 - share) / 8000)
        assert abs(counts[token] / 8000 - share) < 4 * deviation


def test_temperature_flattens_and_sharpens():
    assert tokens(falling_logits(), sampled(temperature=0.25))[0] / 2000 == pytest.approx(15 / 16, abs=0.025)
    assert tokens(falling_logits(), sampled(temperature=2.0))[0] / 2000 == pytest.approx(1 - 2**-0.5, abs=0.045)


def test_top_k_keeps_the_k_likeliest():
    assert set(tokens(falling_logits(), sampled(top_k=3))) == {0, 1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_the_share():
    assert set(tokens(falling_logits(), sampled(top_p=0.7))) == {0, 1}
    assert set(tokens(falling_logits(), sampled(top_p=0.8))) == {0, 1, 2}
    assert set(tokens(falling_logits(), sampled(top_p=0.0))) == {0}


def test_top_p_is_a_share_of_what_top_k_left():
    assert set(tokens(falling_logits(), sampled(top_k=2, top_p=0.6))) == {0}
    assert set(tokens(falling_logits(), sampled(top_k=2, top_p=0.7))) == {0, 1}


def test_min_p_keeps_what_is_likely_beside_the_best():
    assert set(tokens(falling_logits(), sampled(min_p=0.2))) == {0, 1, 2}


def test_top_p_looks_further_when_its_first_candidates_do_not_suffice(monkeypatch: pytest.MonkeyPatch):
    logits = torch.randn(4, VOCABULARY)
    draws = [
        Draw(sampled(seed=9, top_p=share, top_k=k), [], []) for share, k in ((0.99, 0), (0.2, 0), (1.0, 7), (1, 0))
    ]
    wide = draw(logits, *draws)
    monkeypatch.setattr(sampling_module, "CANDIDATES", 4)
    assert draw(logits, *draws) == wide
    nearly_flat = -0.01 * torch.arange(VOCABULARY, dtype=torch.float32)[None]
    assert 35 < max(tokens(nearly_flat, sampled(top_p=0.9))) < 45


def test_rows_do_not_influence_each_other():
    logits = torch.randn(5, VOCABULARY)
    draws = [
        Draw(greedy(), [], []),
        Draw(sampled(seed=1), [], []),
        Draw(sampled(seed=2, top_k=5, logprobs=2), [1], [2]),
        Draw(sampled(seed=3, repetition_penalty=1.5), [1, 2], [3, 3]),
        Draw(greedy(logit_bias=((4, 50.0),), logprobs=0), [], []),
    ]
    together = draw(logits, *draws)
    alone = [draw(logits[row : row + 1], one)[0] for row, one in enumerate(draws)]
    assert [d.token for d in together] == [d.token for d in alone]
    assert [d.logprobs is None for d in together] == [True, True, False, True, False]


def test_a_draw_depends_on_seed_and_answer_index_alone():
    logits = torch.zeros(1, VOCABULARY)
    first = [draw(logits, Draw(sampled(seed=5), [1, 2], [3] * n))[0].token for n in range(30)]
    again = [draw(logits, Draw(sampled(seed=5), [9], [4] * n))[0].token for n in range(30)]
    other = [draw(logits, Draw(sampled(seed=6), [1, 2], [3] * n))[0].token for n in range(30)]
    assert first == again
    assert first != other
    assert len(set(first)) > 10


def test_repetition_penalty_counts_prompt_and_answer_and_works_on_both_signs():
    logits = torch.full((1, VOCABULARY), -5.0)
    logits[0, :4] = torch.tensor([4.0, 3.9, 3.8, -1.0])
    penalised = greedy(repetition_penalty=2.0)
    assert draw(logits, Draw(penalised, [0], []))[0].token == 1
    assert draw(logits, Draw(penalised, [0], [1]))[0].token == 2
    assert draw(logits - 4.5, Draw(penalised, [0], []))[0].token == 1


def test_presence_and_frequency_penalties_count_the_answer_only():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, :3] = torch.tensor([3.0, 2.5, 2.0])
    assert draw(logits, Draw(greedy(presence_penalty=0.7), [0], []))[0].token == 0
    assert draw(logits, Draw(greedy(presence_penalty=0.7), [], [0, 0, 0]))[0].token == 1
    assert draw(logits, Draw(greedy(frequency_penalty=0.4), [], [0]))[0].token == 0
    assert draw(logits, Draw(greedy(frequency_penalty=0.4), [], [0, 0]))[0].token == 1
    assert draw(logits, Draw(greedy(presence_penalty=-2.0), [], [2]))[0].token == 2


def test_logit_bias_is_added_and_unknown_tokens_are_skipped():
    logits = torch.zeros(1, VOCABULARY)
    biased = greedy(logit_bias=((7, 2.0), (8, 1.5), (8, 1.0), (VOCABULARY, 100.0)))
    assert draw(logits, Draw(biased, [], []))[0].token == 8


def test_no_stop_token_before_min_tokens():
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 3], logits[0, 4] = 9.0, 5.0
    sampling = greedy(min_tokens=2, stop_token_ids=(3,), logit_bias=((3, 100.0),))
    assert [draw(logits, Draw(sampling, [], [0] * n))[0].token for n in range(4)] == [4, 4, 3, 3]


def test_logprobs_are_of_the_raw_logits_and_best_first():
    logits = torch.randn(2, VOCABULARY)
    expected = logits.log_softmax(-1)
    asked = sampled(seed=4, temperature=3.0, top_k=10, logit_bias=((1, 5.0),), logprobs=3)
    three, none = draw(logits, Draw(asked, [], []), Draw(greedy(logprobs=0), [], []))
    assert three.logprobs is not None
    assert none.logprobs is not None
    assert three.logprobs.token == pytest.approx(expected[0, three.token].item(), abs=1e-5)
    best = expected[0].topk(3)
    assert [token for token, _ in three.logprobs.top] == best.indices.tolist()
    assert [value for _, value in three.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert none.logprobs.top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [greedy(), sampled(top_p=0.5), greedy(logprobs=2)])
def test_rows_with_nan_or_infinity_are_named(bad: float, sampling: Sampling):
    logits = torch.randn(3, VOCABULARY)
    logits[1, 20] = bad
    with pytest.raises(NotFinite) as raised:
        draw(logits, *[Draw(sampling, [], [])] * 3)
    assert raised.value.rows == [1]


def test_a_row_without_any_finite_logit_is_named():
    with pytest.raises(NotFinite):
        draw(torch.full((1, VOCABULARY), -math.inf), Draw(greedy(), [], []))
