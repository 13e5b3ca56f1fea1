"""Noise from (seed, answer index, token id) alone: the same on every device, in every batch and attempt."""

import torch
from torch import Tensor

_WORD = 1 << 64
_STEP = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_BITS = 40


class GumbelNoise:
    """Standard Gumbel variates: adding them to log-probabilities and taking the largest draws from the distribution.

    Integers come from SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), one stream per (seed, index), one step per token
    id, in int64 arithmetic that wraps alike everywhere.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._steps = torch.arange(1, vocab_size + 1, device=device) * _signed(_STEP)

    def rows(self, keys: list[int]) -> Tensor:
        """Noise float32 [keys, vocabulary]; a key is what `stream_key` gives."""
        bits = self._steps + torch.tensor(keys, device=self._steps.device)[:, None]
        _xor_shifted(bits, 30)
        bits *= _signed(_MIX_1)
        _xor_shifted(bits, 27)
        bits *= _signed(_MIX_2)
        bits >>= 64 - _BITS
        bits &= (1 << _BITS) - 1
        # uniform in (0, 1], exact near 0, where the winners come from
        uniform = bits.to(torch.float32).add_(0.5).mul_(2.0**-_BITS)
        return uniform.neg_().log1p_().neg_().log_().neg_()


def stream_key(seed: int, index: int) -> int:
    """One well mixed signed 64-bit integer for answer index `index` under `seed`."""
    return _signed(_mix(_mix(seed) + index * _STEP))


def _mix(word: int) -> int:
    word = (word + _STEP) % _WORD
    word = (word ^ (word >> 30)) * _MIX_1 % _WORD
    word = (word ^ (word >> 27)) * _MIX_2 % _WORD
    return word ^ (word >> 31)


def _xor_shifted(bits: Tensor, distance: int) -> None:
    """bits ^= bits >> distance, the shift filling with zeros (torch's own fills with the sign)."""
    bits ^= (bits >> distance) & ((1 << (64 - distance)) - 1)


def _signed(word: int) -> int:
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word
