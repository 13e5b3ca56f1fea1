"""The sequences that a decode instance decodes, as sums: what steps take of time and blocks, without looking at each.

k steps of B requests with S tokens of context take k * (fixed + each * S) + each * B * k * (k - 1) / 2 seconds.
"""

from functools import cache
from heapq import heappush
from operator import mul


class Member:
    """A sequence that owns blocks, while it is looked at by itself."""

    __slots__ = ("blocks", "computed", "request", "tokens")

    def __init__(self, request: int, tokens: int, computed: int, blocks: int) -> None:
        self.request, self.tokens, self.computed, self.blocks = request, tokens, computed, blocks


class Batch:
    """Members that lack the KV of their last token only. Each counts its tokens from the step at which it joined."""

    __slots__ = ("_block_tokens", "_crossing", "_unfilled", "context", "decoding", "ends", "step")

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._crossing = [0] * block_tokens  # members that need a block at step s: _crossing[s % block_tokens]
        # Tokens for which the last block of such members still has room: _unfilled[s % block_tokens].
        self._unfilled = _unfilled(block_tokens)
        self.decoding: dict[int, tuple[int, int]] = {}  # request -> (step at which it joined, tokens it had then)
        self.ends: list[tuple[int, int]] = []  # heap of (step after which it has its last token, request)
        self.context = 0  # tokens of all members
        self.step = 0  # steps done

    def put_in(self, request: int, tokens: int, left: int) -> None:
        """It decodes from the next step on and ends after `left` of them."""
        step = self.step
        self.decoding[request] = (step, tokens)
        self._crossing[(step - tokens + 1) % self._block_tokens] += 1
        self.context += tokens
        heappush(self.ends, (step + left, request))

    def take_out(self, request: int) -> tuple[int, int]:
        """(its tokens, the steps it has taken part in). It decodes no more."""
        joined, tokens = self.decoding.pop(request)
        self._crossing[(joined - tokens + 1) % self._block_tokens] -= 1
        steps = self.step - joined
        self.context -= tokens + steps
        return tokens + steps, steps

    def blocks(self, steps: int = 0) -> int:
        """That all members have when the next `steps` steps have begun: each takes its block when its step begins."""
        size = self._block_tokens
        tokens = self.context + (steps - 1) * len(self.decoding)  # whose KV is in blocks or about to be
        return (tokens + sum(map(mul, self._crossing, self._unfilled[(self.step + steps) % size]))) // size

    def most_blocks(self, steps: int) -> int:
        """Never less than `blocks(steps)`, and quickly had."""
        return (self.context + steps * len(self.decoding)) // self._block_tokens + len(self.decoding)

    def steps_within(self, room: int, steps: int) -> int:
        """The most of `steps` for which members need no more than `room` blocks; at least 1."""
        enough, too_many = 1, steps + 1
        while too_many - enough > 1:
            middle = (enough + too_many) // 2
            if self.blocks(middle) <= room:
                enough = middle
            else:
                too_many = middle
        return enough


@cache
def _unfilled(block_tokens: int) -> tuple[tuple[int, ...], ...]:
    """[step][step at which one needs a block], both modulo `block_tokens`."""
    steps = range(block_tokens)
    return tuple(tuple((need - step) % block_tokens for need in steps) for step in steps)
