"""Rotary position embedding: pairs (i, i + head_dim / 2) of a head are turned by an angle that grows with position."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from shared.specs.model import LinearScaling, Llama3Scaling, Rope


class Rotation(NamedTuple):
    """For each token of a step, [tokens, 1, head_dim]. The sine of the first half carries its minus sign already."""

    cos: Tensor
    sin: Tensor


class Rotary:
    def __init__(self, rope: Rope, head_dim: int, device: torch.device, *, exact: bool) -> None:
        """`exact`: angles stay float32, whatever the dtype of what they turn."""
        self._exact = exact
        frequencies = rotation_frequencies(rope, head_dim)
        self._frequencies = torch.cat((frequencies, frequencies)).to(device)
        sign = torch.ones(head_dim, device=device)
        sign[: head_dim // 2] = -1
        self._sign = sign

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """positions int64 [tokens]."""
        dtype = torch.float32 if self._exact else dtype
        angles = positions.to(torch.float32)[:, None, None] * self._frequencies
        return Rotation(angles.cos().to(dtype), angles.sin().mul_(self._sign).to(dtype))


def rotate(heads: Tensor, rotation: Rotation) -> None:
    """Turn heads [tokens, heads, head_dim] in place."""
    halves_swapped = heads.roll(heads.shape[-1] // 2, -1)
    heads.mul_(rotation.cos).addcmul_(halves_swapped, rotation.sin)


def rotation_frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Radians per position, float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling)


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's rule: frequencies by how often they turn within the original context."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    kept_share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept_share = kept_share.clamp(0, 1)
    return (1 - kept_share) * frequencies / scaling.factor + kept_share * frequencies
