"""The paper's experiment: the same devices colocated and split, on the same trace, in turns."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.bench.measure import Measured, Measurement
from cli.bench.report import run_of
from cli.bench.running_stack import RunningStack, running_stack
from cli.bench.screen import Screen
from cli.bench.server import find_server
from cli.bench.session import decisive
from cli.bench.shapes import Shape
from cli.bench.stages import stages_of_runs
from services.scheduler.planner.goodput import Promise, search_rate
from services.scheduler.simulator.workload import Trace

GENERATOR = "load"


@dataclass(frozen=True, slots=True)
class Found:
    """The goodput of a shape in one round, and the run that shows it."""

    rate: float
    done: list[Measured]
    cpu_shares: dict[str, float]  # of a core, by part, at that rate
    stages: dict[str, float]  # mean seconds of a request by stage, at that rate

    @property
    def reasons(self) -> list[str]:
        """Why it is not valid, if it is not."""
        return [reason for one in decisive(self.done, self.rate) for reason in one.verdict.reasons]

    @property
    def best(self) -> Measured | None:
        return next((one for one in self.done if one.rate == self.rate), None)

    def to_json(self) -> dict[str, Any]:
        runs = [run_of(one, {}) | {"answers": []} for one in self.done]
        return {"rate": self.rate, "cpu_shares": self.cpu_shares, "stages_s": self.stages, "runs": runs}


@dataclass(slots=True)
class Experiment:
    """`options`: of every `./distserve up`. `traces`: one for each round, at mean rate 1/s."""

    options: Sequence[str]
    traces: Sequence[Trace]
    warmup: int
    promise: Promise
    tolerance: float
    screen: Screen
    found: dict[Shape, list[Found]] = field(default_factory=dict)

    def rounds(self, shapes: Sequence[Shape], guesses: Sequence[float]) -> Iterator[int]:
        """Measure a round for each next(); every other one begins with the last shape."""
        rates = dict(zip(shapes, guesses, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            for number, trace in enumerate(self.traces):
                for shape in shapes if number % 2 == 0 else reversed(shapes):
                    found = self._measure(shape, trace, number, rates[shape], Path(folder) / "up.log")
                    self.found.setdefault(shape, []).append(found)
                    rates[shape] = found.rate or rates[shape] / 4
                yield number

    def _measure(self, shape: Shape, trace: Trace, seed: int, guess: float, output: Path) -> Found:
        with running_stack([*self.options, *shape.options], output) as stack:
            server = asyncio.run(find_server(stack.url, "", "", None, seed))
            measurement = Measurement(server, trace, self.warmup, self.promise, self.screen)
            shares: dict[float, dict[str, float]] = {}

            def kept(rate: float) -> bool:
                measured, shares[rate] = _with_cpu(stack, measurement, rate)
                return measured.kept

            self.screen.label = str(shape)
            rate = search_rate(kept, guess, self.tolerance, least=guess / 64)
            names = [one.run.name for one in measurement.done if one.rate == rate]
            stages = stages_of_runs(stack.folder / "traces", names)
        return Found(rate, measurement.done, shares.get(rate, {}), stages[0] if stages else {})


def _with_cpu(stack: RunningStack, measurement: Measurement, rate: float) -> tuple[Measured, dict[str, float]]:
    """A run until it is lost, and what share of a core each part used meanwhile."""
    before, begun = stack.cpu_seconds(), time.monotonic()
    measured = measurement.at(rate, until_lost=True)
    seconds, after = time.monotonic() - begun, stack.cpu_seconds()
    shares = {part: (spent - before.get(part, 0.0)) / seconds for part, spent in after.items()}
    return measured, shares | {GENERATOR: measured.run.cpu_seconds / seconds}
