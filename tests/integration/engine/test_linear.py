import pytest
import torch
import torch.nn.functional as F

from shared.engine import linear
from shared.engine.linear import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_a_packed_layer_equals_its_plain_twin(
    dtype: torch.dtype, biased: bool, rows: int, monkeypatch: pytest.MonkeyPatch
):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU cannot compute in bfloat16")
    monkeypatch.setattr(linear, "packing_pays", lambda weight: torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64).to(dtype), torch.randn(96).to(dtype) if biased else None
    x = torch.randn(rows, 64).to(dtype)
    layer = Linear(weight, bias)
    assert layer.packed
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(layer(x).float(), expected, rtol=tolerance, atol=tolerance * 10)


def test_small_float32_layers_are_left_as_they_are():
    assert not Linear(torch.randn(8, 8), None).packed
