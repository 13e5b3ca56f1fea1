"""One rate after the other: send, watch, judge, sum up."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cli.bench.calls import Answer, Call, schedule
from cli.bench.load import Run, run_load
from cli.bench.server import Server
from cli.bench.statistics import summary
from cli.bench.verdict import Verdict, judge, judge_burst
from services.scheduler.planner.goodput import Promise, search_rate
from services.scheduler.simulator.workload import Trace

LEAST_SHARE = 1 / 64
SETTLE_SECONDS = 1.0  # between two rates: what the first left behind is over


class Watcher(Protocol):
    """Whoever wants to see it."""

    def show(self, rate: float, run: Run) -> None:
        """Now and then, while it runs."""
        ...

    def add(self, measured: "Measured") -> None:
        """When it is over."""
        ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A rate, and what came of it."""

    rate: float
    run: Run
    promise: Promise
    summary: dict[str, Any]
    generator: dict[str, float]
    verdict: Verdict

    @property
    def kept(self) -> bool:
        """The promise was kept, and the run shows it."""
        joint = self.summary["attainment"]["joint"]
        return self.verdict.valid and not self.run.stopped and joint >= self.promise.share - 1e-9


class Measurement:
    """Rates of one trace at one server."""

    def __init__(self, server: Server, trace: Trace, warmup: int, promise: Promise, watcher: Watcher) -> None:
        """`trace` has a mean rate of 1/s."""
        self._server, self._trace, self._warmup = server, trace, warmup
        self._promise, self._watcher = promise, watcher
        self._name = f"bench-{int(time.time())}"
        self.done: list[Measured] = []

    def at(self, rate: float, *, requests: int | None = None, until_lost: bool = False) -> Measured:
        """Send the trace, or its first `requests`, at `rate`; `until_lost`: no longer than the promise can be kept."""
        if self.done:
            time.sleep(SETTLE_SECONDS)
        calls = self._calls(rate, requests)
        name = f"{self._name}-{len(self.done)}"

        def watch(run: Run) -> bool:
            self._watcher.show(rate, run)
            return until_lost and is_lost(run.counted, run.seconds, self._promise)

        run = asyncio.run(run_load(self._server, calls, name, watch))
        measured = _measured(rate, run, self._promise)
        if until_lost and measured.kept:
            times = [answer.call.due for answer in run.counted]
            burst = judge_burst(rate, len(times), max(times) - min(times), self._promise)
            measured = measured if burst.valid else replace(measured, verdict=burst)
        self.done.append(measured)
        self._watcher.add(measured)
        return measured

    def search(self, guess: float, tolerance: float) -> float:
        """The highest rate found to keep the promise; 0 if none from a LEAST_SHARE of the guess on does."""
        least = guess * LEAST_SHARE
        return search_rate(lambda rate: self.at(rate, until_lost=True).kept, guess, tolerance, least=least)

    def _calls(self, rate: float, requests: int | None) -> list[Call]:
        trace = self._trace if requests is None else self._trace.first(min(len(self._trace), requests + self._warmup))
        return schedule(trace.stretched(1 / rate), self._warmup)


def is_lost(answers: Sequence[Answer], now: float, promise: Promise) -> bool:
    """Whether more requests have missed their targets than may."""
    allowed = math.floor((1 - promise.share) * len(answers) + 1e-9)
    return sum(answer.has_missed(now, promise.ttft, promise.tpot) for answer in answers) > allowed


def _measured(rate: float, run: Run, promise: Promise) -> Measured:
    counted = [a for a in run.counted if a.sent is not None] if run.stopped else run.counted
    figures = summary(counted, promise)
    share = run.cpu_seconds / run.seconds if run.seconds else 0.0
    generator = {
        "cpu_share": share,
        "cpu_us_per_piece": 1e6 * run.cpu_seconds / run.pieces if run.pieces else 0.0,
        "cpu_us_per_request": 1e6 * run.cpu_seconds / len(run.answers),
    }
    return Measured(rate, run, promise, figures, generator, judge(figures["late_s"].get("p99", 0.0), share, promise))
