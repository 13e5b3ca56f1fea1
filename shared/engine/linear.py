"""y = x W^T + b, with the weight packed once on a CPU where that pays."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.engine.cpu.kernels import Kernels

Projection = Callable[[Tensor], Tensor]  # [tokens, inputs] -> [tokens, outputs]

FEW_ROWS = 8  # of a bfloat16 layer; from more on, oneDNN is faster on a CPU that multiplies bfloat16
PACK_FROM_INPUTS_ON_INTEL = 512  # of 256, one row takes 1.4 times as long packed, and 16 rows as long as plain
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


class ShortLinear:
    """As Linear, on a CPU, of a weight whose numbers bfloat16 can hold, as most checkpoints' can.

    They are kept in 16 bits, which halves what a decode step reads in float32. Sums are exactly float32's.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        self._kernels, self._bias = kernels, bias
        self._packed = kernels.packed(weight)

    @staticmethod
    def usable(weight: Tensor, kernels: Kernels) -> bool:
        return weight.shape[0] % (2 * kernels.lanes) == 0 and torch.equal(weight.bfloat16().to(weight.dtype), weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, inputs] -> [tokens, outputs]."""
        y = self._kernels.product(x.float().contiguous(), self._packed)
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)


@dataclass(frozen=True, slots=True)
class ByRows:
    """Two copies of one bfloat16 layer, each where it is the faster one."""

    few: ShortLinear
    many: Linear
    few_rows: int = FEW_ROWS

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, inputs] -> [tokens, outputs]."""
        return self.few(x) if len(x) <= self.few_rows else self.many(x)


def linear(weight: Tensor, bias: Tensor | None, kernels: Kernels | None) -> Projection:
    """The fastest kind for this weight."""
    if kernels is None or not ShortLinear.usable(weight, kernels):
        return Linear(weight, bias)
    short = ShortLinear(weight, bias, kernels)
    return short if weight.dtype == torch.float32 else ByRows(short, Linear(weight, bias))


def packing_pays(weight: Tensor) -> bool:
    """Measured on decode steps: up to 2 times faster. float32 on Intel: from 4 rows on, one alone loses a sixth."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and weight.numel() >= PACK_FROM_ELEMENTS and not _better_plain(weight)


def _better_plain(weight: Tensor) -> bool:
    return _intel() and weight.shape[1] < PACK_FROM_INPUTS_ON_INTEL


@cache
def _intel() -> bool:
    """There torch's own float32 products are MKL's, which are at their best."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
