"""Layers with int8 weights, one scale for each output, and activations rounded to int8, one scale for each token.

A scale per token, not one for all: what a request's rows are rounded to must not depend on who shares its step.
"""

from functools import cache

import torch
from torch import Tensor

from shared.engine.cpu.kernels import Kernels

WEIGHT_LEVELS = 127
FEW_ROWS = 6  # from more on, oneDNN's product is faster


class Int8Linear:
    """weight [outputs, inputs], bias [outputs] or None; on a CPU. Sums of products are exact integers.

    With `kernels` the weight is in memory twice, once in their form for few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels | None = None) -> None:
        weight = weight.float()
        self._scales = smallest_positive(weight.abs().amax(dim=1)) / WEIGHT_LEVELS
        levels = (weight / self._scales[:, None]).round().to(torch.int8)
        self._kernels = kernels
        self._for_few = kernels.packed_int8(levels) if kernels is not None and _fits(levels, kernels) else None
        self._packed = torch.ops.onednn.qlinear_prepack(levels, None)
        self._weight_zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        self._bias = None if bias is None else bias.float()
        self._activation_levels = activation_levels()

    def __call__(self, x: Tensor) -> Tensor:
        """x [tokens, inputs] -> [tokens, outputs] in the same dtype."""
        if not len(x):
            return x.new_empty(0, len(self._scales))
        if self._kernels is not None and self._for_few is not None and len(x) <= FEW_ROWS:
            rows = x.float().contiguous()
            y = self._kernels.product_int8(rows, self._for_few, self._scales, self._activation_levels)
        else:
            y = self._many(x)
        return (y if self._bias is None else y.add_(self._bias)).to(x.dtype)

    def _many(self, x: Tensor) -> Tensor:
        most = self._activation_levels
        levels, scales = rounded_rows(x, most)
        sums = torch.ops.onednn.qlinear_pointwise(
            levels,
            1.0,  # the rows' scales follow
            most + 1,  # which level is zero
            self._packed,
            self._scales,
            self._weight_zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return sums.mul_(scales)


def _fits(levels: Tensor, kernels: Kernels) -> bool:
    outputs, inputs = levels.shape
    return outputs % (4 * kernels.lanes) == 0 and inputs % kernels.lanes == 0


def rounded_rows(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """x [tokens, inputs] as levels uint8, from 1 to 2 * most + 1, zero at most + 1; and scales float32 [tokens, 1]."""
    x = x.float()
    scales = smallest_positive(x.abs().amax(dim=1, keepdim=True)) / most  # one pass as a norm would be slower
    return (x / scales).add_(most + 1.5).to(torch.uint8), scales  # the conversion cuts off what is behind the point


def smallest_positive(largest: Tensor) -> Tensor:
    """So that a row of zeros has a scale to be divided by."""
    return largest.clamp_(min=1e-30)


@cache
def activation_levels() -> int:
    """Without VNNI two products are summed in 16 bits, which 8-bit activations would overflow: 7 bits cannot."""
    return 127 if torch.cpu._is_vnni_supported() else 63
