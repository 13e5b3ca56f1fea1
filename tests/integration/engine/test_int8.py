"""int8 layers equal the same rounding done in plain torch; an engine with them stays near the exact one."""

import pytest
import torch

from shared.engine import int8
from shared.engine.device import check_quantization
from shared.engine.int8 import Int8Linear, activation_levels, rounded_rows
from shared.specs.sampling import Sampling
from shared.specs.settings import BadSetting
from tests.generation import advance, begin, generate

PROMPTS = [[6 + (i * 13 + length) % 250 for i in range(length)] for length in (33, 7, 48, 1)]


def plain_twin(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, most: int) -> torch.Tensor:
    weight_scales = weight.double().abs().amax(dim=1, keepdim=True) / 127
    weight_levels = (weight.double() / weight_scales).round()
    levels, scales = rounded_rows(x, most)
    sums = (levels.double() - (most + 1)) @ weight_levels.T
    return (sums * weight_scales.T * scales.double() + (0 if bias is None else bias.double())).float()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_an_int8_layer_equals_its_plain_twin(biased: bool, rows: int):
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64), torch.randn(96) if biased else None
    x = torch.randn(rows, 64) * torch.logspace(-3, 3, rows)[:, None]
    expected = plain_twin(weight, bias, x, activation_levels())
    torch.testing.assert_close(Int8Linear(weight, bias)(x), expected, rtol=1e-4, atol=1e-4)


def test_seven_bits_do_for_a_cpu_that_would_overflow_with_eight(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8, "activation_levels", lambda: 63)
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(5, 64)
    layer = Int8Linear(weight, None)
    torch.testing.assert_close(layer(x), plain_twin(weight, None, x, 63), rtol=1e-4, atol=1e-4)


def test_a_row_is_rounded_alike_in_any_company():
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(96, 64), None)
    x = torch.randn(9, 64) * torch.logspace(-3, 3, 9)[:, None]
    torch.testing.assert_close(layer(x[4:5]), layer(x)[4:5], rtol=1e-6, atol=0)


def test_rows_and_outputs_of_zeros_give_zeros():
    assert not Int8Linear(torch.zeros(8, 16), None)(torch.randn(2, 16)).any()
    assert not Int8Linear(torch.randn(8, 16), None)(torch.zeros(2, 16)).any()


def test_a_row_that_is_not_finite_stays_recognisable():
    x = torch.randn(3, 16)
    x[1, 5] = torch.nan
    y = Int8Linear(torch.randn(8, 16), None)(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("family", ["llama3", "llama_biased", "opt", "gpt2"])
def test_an_int8_engine_stays_near_the_exact_one(family: str, load_engine):
    asked = [Sampling(max_tokens=9, temperature=0.0, logprobs=1)] * len(PROMPTS)
    results = []
    for engine in (load_engine(family), load_engine(family, quantization="int8")):
        generations = begin(engine, PROMPTS, asked, 2)
        advance(engine, generations)
        drawn = [generation.drawn[0].logprobs for generation in generations]
        results.append([logprobs.token for logprobs in drawn if logprobs])
    torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[0]), rtol=0.1, atol=0.3)


def test_int8_answers_do_not_depend_on_the_batch(load_engine):
    engine = load_engine("llama", quantization="int8")
    together = generate(engine, PROMPTS, 16)
    assert [generate(engine, [prompt], 16)[0] for prompt in PROMPTS] == together


def test_int8_is_refused_where_it_cannot_be_had():
    with pytest.raises(BadSetting, match="works on a CPU only: leave it out with device cuda"):
        check_quantization("int8", torch.device("cuda"))
