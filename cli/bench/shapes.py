"""Ways to use k devices: all colocated, or split into prefill and decode. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cli.bench.statistics import Interval
from services.scheduler.planner.goodput import STUDENT


@dataclass(frozen=True, slots=True)
class Shape:
    """Instances of one device each. No prefill instances: the others do both."""

    prefill: int
    decode: int

    @property
    def devices(self) -> int:
        return self.prefill + self.decode

    @property
    def colocated(self) -> bool:
        return not self.prefill

    @property
    def options(self) -> tuple[str, ...]:
        """Of `./distserve up`."""
        decode = ("--decode", str(self.decode))
        return ("--colocated", *decode) if self.colocated else ("--prefill", str(self.prefill), *decode)

    @property
    def placement(self) -> str:
        """As the simulator reads it."""
        return f"{self.decode}x tp1 colocated" if self.colocated else f"{self.prefill}x tp1 + {self.decode}x tp1"

    def __str__(self) -> str:
        return f"{self.decode} colocated" if self.colocated else f"{self.prefill} prefill + {self.decode} decode"


def shapes_of(devices: int) -> list[Shape]:
    """Colocated first, then every split."""
    return [Shape(0, devices), *(Shape(prefill, devices - prefill) for prefill in range(1, devices))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, Interval | None] | None:
    """Geometric mean of ours / theirs, round by round, with its 95 % interval; None if theirs was 0 once.

    The interval is Student's, of the logarithms; None with a single round, or if ours was 0 once.
    """
    if not all(theirs):
        return None
    if not all(ours):
        return statistics.fmean(ours) / statistics.fmean(theirs), None
    logs = [math.log(our / their) for our, their in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), None
    half = STUDENT.get(len(logs) - 1, 1.96) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), (math.exp(mean - half), math.exp(mean + half))
