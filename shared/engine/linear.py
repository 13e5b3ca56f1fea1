"""y = x W^T + b, with the weight packed once on a CPU where that pays."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACK_FROM_ELEMENTS = 1 << 18  # below this a float32 packed call's own overhead is more than packing saves


class Linear:
    """weight [outputs, inputs], bias [outputs] or None, both in the model's dtype on the model's device.

    Without packing, F.linear may rearrange the weight at every call, which can cost as much as a small batch's product.
    The packed copy replaces the weight, so that a weight which nobody else refers to is in memory once.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        self.packed = packing_pays(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, inputs] -> [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def packing_pays(weight: Tensor) -> bool:
    """Measured on decode steps: bfloat16 is 1.2 to 2 times faster, float32 up to 2 times on AMD and slower on Intel."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and weight.numel() >= PACK_FROM_ELEMENTS and not _intel()


@cache
def _intel() -> bool:
    """There torch's own float32 products are MKL's, which are at their best."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
