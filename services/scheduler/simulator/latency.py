"""Iteration times of one instance in seconds, from its profile."""

from functools import cache

from services.scheduler.simulator.profile import Coefficients, Overhead


class Latency:
    """One instance of shape (tp, pp). Its stages share the layers evenly; `send_seconds` is the way between two."""

    __slots__ = (
        *("_large", "_large_batch", "_small"),
        *("a", "b", "c", "decode", "iteration", "per_context", "pp", "send", "stage"),
    )

    def __init__(self, times: Coefficients, overhead: Overhead, pp: int, send_seconds: float) -> None:
        self.pp, self.send = pp, send_seconds
        self.a, self.b, self.c = _seconds(times.prefill)
        self.iteration, self.per_context = overhead.iteration_ms / 1000, overhead.context_token_ms / 1000
        self.stage = overhead.prefill_stage_ms / 1000
        self._small = _seconds(times.decode_small)
        self._large = _seconds(times.decode_large)
        self._large_batch = times.large_batch
        self.decode = cache(self._round)

    def prefill_stages(self, tokens: int, squares: int) -> tuple[float, float]:
        """(first stage, each later stage) of a batch with that many tokens and sum of squared lengths."""
        later = (self.a + self.b * tokens + self.c * squares) / self.pp + self.stage
        return later + self.iteration + self.per_context * tokens, later

    def _round(self, requests: int) -> tuple[float, float]:
        """One round of all micro-batches takes first + second * (sum of contexts).

        The requests are divided evenly over as many micro-batches as there are stages. A round lasts as long as the
        largest of them needs for all stages, or as the first stage, which has the engine's overhead, needs for all.
        """
        largest = -(-requests // self.pp)
        a, b, c = self._small if largest < self._large_batch else self._large
        share = largest / requests
        batches = min(requests, self.pp)
        through = a + c * largest + self.iteration + (self.pp - 1) * self.send
        first_stage = batches * ((a + c * largest) / self.pp + self.iteration)
        each = max(b + self.per_context, batches * (b / self.pp + self.per_context)) * share
        return max(through, first_stage), each

    def mixed(self, requests: int, context: int, chunks: list[tuple[int, int]]) -> float:
        """A step of `requests` decoding ones with `context` tokens and chunks (tokens computed before, new tokens).

        The weights are read once: the larger constant counts. Each chunk reads the KV of what came before it again.
        """
        new = sum(count for _, count in chunks)
        squares = sum((before + count) ** 2 - before**2 for before, count in chunks)
        again = sum(before for before, _ in chunks)
        a, b, c = self._small if requests < self._large_batch else self._large
        work = (
            max(self.a, a if requests else 0.0) + self.b * new + self.c * squares + b * (context + again) + c * requests
        )
        return (
            work
            + self.stage * self.pp
            + self.iteration
            + (self.pp - 1) * self.send
            + self.per_context * (context + again + new)
        )


def _seconds(milliseconds: tuple[float, float, float]) -> tuple[float, float, float]:
    a, b, c = milliseconds
    return a / 1000, b / 1000, c / 1000
