"""Every kernel gives what its plain twin in torch gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared.engine.cpu import library as building
from shared.engine.cpu.kernels import Kernels, kernels_for
from shared.engine.int8 import Int8Linear
from shared.engine.linear import ByRows, Linear, ShortLinear, linear
from shared.engine.models.llama import RmsNorm
from shared.engine.models.rotary import Rotary, rotate
from shared.specs.model import Rope
from tests.integration.engine.test_attention import spec

DTYPES = [torch.float32, torch.bfloat16]
ROWS = [0, 1, 2, 3, 5, 7, 12, 13, 40, 600]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made = kernels_for(spec(4, 2, 32), torch.device("cpu"), torch.float32)
    if made is None:
        pytest.skip("no kernels for this CPU, or no compiler")
    torch.manual_seed(0)
    return made


def short(*shape: int) -> torch.Tensor:
    """Random float32 numbers that bfloat16 can hold."""
    return torch.randn(*shape).bfloat16().float()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 2e-5 if got.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 7), (96, 64), (1184, 300)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_layer_of_short_weights_computes_in_float32(
    kernels: Kernels, rows: int, outputs: int, inputs: int, biased: bool
):
    weight, bias, x = short(outputs, inputs), torch.randn(outputs) if biased else None, torch.randn(rows, inputs)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
    for layer in (ShortLinear(weight, bias, kernels), linear(weight, bias, kernels)):
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", ROWS)
def test_a_layer_in_bfloat16_rounds_its_sums_alone(kernels: Kernels, rows: int):
    weight, x = torch.randn(96, 64).bfloat16(), torch.randn(rows, 64).bfloat16()
    got = ShortLinear(weight, None, kernels)(x)
    close(got, F.linear(x.float(), weight.float()).bfloat16())


def test_each_of_two_copies_serves_its_number_of_rows(kernels: Kernels):
    weight, few = short(96, 64), ShortLinear(short(96, 64), None, kernels)
    layer = ByRows(few, Linear(weight, None), 3)
    x = torch.randn(4, 64)
    assert torch.equal(layer(x[:3]), few(x[:3]))
    torch.testing.assert_close(layer(x), F.linear(x, weight))


def test_a_row_of_a_layer_does_not_depend_on_the_other_rows(kernels: Kernels):
    layer, x = ShortLinear(short(1184, 300), None, kernels), torch.randn(600, 300)
    together = layer(x)
    for rows in ROWS[1:]:
        assert torch.equal(layer(x[:rows]), together[:rows])


def test_weights_that_bfloat16_cannot_hold_are_left_as_they_are(kernels: Kernels):
    assert isinstance(linear(torch.randn(64, 64), None, kernels), Linear)
    assert isinstance(linear(short(40, 64)[:36], None, kernels), Linear), "no whole panels"


def test_infinities_and_nan_pass_through_a_layer(kernels: Kernels):
    weight = short(32, 8)
    weight[3, 2] = float("nan")
    assert ShortLinear(weight, None, kernels)(torch.ones(1, 8)).isnan()[0].nonzero().flatten().tolist() == [3]
    x = torch.ones(2, 8)
    x[1, 0] = float("inf")
    y = ShortLinear(short(32, 8), None, kernels)(x)
    assert y[0].isfinite().all()
    assert not y[1].isfinite().any()


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_of_an_int8_layer_are_rounded_and_summed_as_many_are(kernels: Kernels, rows: int, dtype: torch.dtype):
    weight, bias = torch.randn(192, 2048), torch.randn(192)
    x = (torch.randn(rows, 2048) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    assert torch.equal(Int8Linear(weight, bias, kernels)(x), Int8Linear(weight, bias)(x))


def test_a_row_of_an_int8_layer_that_is_not_finite_stays_recognisable(kernels: Kernels):
    x = torch.randn(3, 64)
    x[1, 5], x[2] = torch.nan, 0
    y = Int8Linear(torch.randn(128, 64), None, kernels)(x)
    assert y[1].isnan().all()
    assert y[0].isfinite().all()
    assert not y[2].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS[1:])
def test_norm_gate_and_rotation_equal_their_twins(kernels: Kernels, dtype: torch.dtype, rows: int):
    x, weight = torch.randn(rows, 160).to(dtype), torch.randn(160).to(dtype)
    close(RmsNorm(weight, 1e-5, kernels)(x), F.rms_norm(x.float(), (160,), weight.float(), 1e-5).to(dtype))

    gate_up = (torch.randn(rows, 320) * 20).to(dtype)
    gate, up = gate_up.float().chunk(2, dim=-1)
    close(kernels.gate(gate_up), (F.silu(gate) * up).to(dtype))

    heads = torch.randn(rows, 7, 64).to(dtype)
    rotation = Rotary(Rope(theta=10000.0, scaling=None), 64, torch.device("cpu"), exact=True).at(
        torch.arange(rows), dtype
    )
    expected = heads.float()
    rotate(expected[:, :5], rotation)
    kernels.rotate(heads, 5, *rotation)
    close(heads, expected.to(dtype))


def test_a_gate_saturates_without_overflow(kernels: Kernels):
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")]).repeat(4)[None]
    got = kernels.gate(torch.cat((gate, torch.ones_like(gate)), dim=1))
    torch.testing.assert_close(got, F.silu(gate), rtol=1e-5, atol=1e-8, equal_nan=True)


def test_without_a_compiler_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "BUILT", tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(building.CannotBuild, match="install one"):
        building.library(next(iter(building.MARCH)))


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(building, "BUILT", tmp_path)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(building.CannotBuild, match="failed"):
        building.library(next(iter(building.MARCH)))
    assert list(tmp_path.iterdir()) == []


def test_all_variants_of_this_architecture_can_be_built_for_an_image(kernels: Kernels):
    done = subprocess.run([sys.executable, building.__file__], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(building.MARCH)
