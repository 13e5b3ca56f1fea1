"""What each phase can do alone: algorithm 1's simu_prefill and simu_decode, and which pairs may be built of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from services.scheduler.planner.candidates import Cluster, Shape, fits_nodes, fits_segments
from services.scheduler.planner.question import COARSE, Job, Question, Workers
from services.scheduler.simulator.placement import Group, Placement
from services.scheduler.simulator.workload import Trace

RATIOS = ((1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (1, 2), (1, 3), (2, 3))
Combination = tuple[Shape, Shape, tuple[int, int]]  # prefill, decode, copies of each


@dataclass(frozen=True, slots=True)
class Phases:
    """Goodput of each shape if the other phase costs nothing; only of those that have room for another beside them."""

    prefill: dict[Shape, float]
    decode: dict[Shape, float]

    @property
    def best_prefill(self) -> Shape | None:
        return _best(self.prefill)

    @property
    def best_decode(self) -> Shape | None:
        return _best(self.decode)

    def bound(self, combination: Combination) -> float:
        """No pair can do more than its lesser phase."""
        prefill, decode, (n, m) = combination
        return min(n * self.prefill.get(prefill, 0.0), m * self.decode.get(decode, 0.0))


def combinations(possible: list[Shape], cluster: Cluster, *, across_nodes: bool) -> list[Combination]:
    """Every pair of shapes and ratio that the cluster has room for."""
    fits: Callable[[Shape, Shape, Cluster, tuple[int, int]], bool] = fits_nodes if across_nodes else fits_segments
    return [(p, d, ratio) for p in possible for d in possible for ratio in RATIOS if fits(p, d, cluster, ratio)]


def measure(question: Question, combined: list[Combination], trace: Trace, workers: Workers) -> Phases:
    """Decoding with Poisson arrivals and free prefill. It is not asked for more than its partners can bring."""
    prefill = _prefill_rates(question, sorted({p for p, _, _ in combined}), trace, workers)
    most: dict[Shape, float] = {}
    for p, d, (n, m) in combined:
        most[d] = max(most.get(d, 0.0), n / m * prefill[p])
    shapes = sorted(shape for shape, rate in most.items() if rate)
    only_steps = replace(question.promise, ttft=math.inf)
    jobs = []
    for shape in shapes:
        group = Group(1, shape.tp, shape.pp)
        setup = question.setup(Placement(group, group), free_prefill=True)
        jobs.append(Job(setup, trace, only_steps, tolerance=COARSE, most=most[shape]))
    decode = dict(zip(shapes, workers.run(jobs), strict=True))
    return Phases(prefill, decode)


def _prefill_rates(question: Question, shapes: list[Shape], trace: Trace, workers: Workers) -> dict[Shape, float]:
    first_tokens = replace(trace, outputs=[1] * len(trace))
    only_first = replace(question.promise, tpot=math.inf)
    jobs = []
    for shape in shapes:
        group = Group(1, shape.tp, shape.pp)
        jobs.append(Job(question.setup(Placement(group, group)), first_tokens, only_first, tolerance=COARSE))
    return dict(zip(shapes, workers.run(jobs), strict=True))


def pairs(combined: list[Combination], phases: Phases) -> Iterator[tuple[float, float, Placement]]:
    """(bound on the goodput per GPU, on the goodput, placement)."""
    for combination in combined:
        bound = phases.bound(combination)
        if bound:
            p, d, (n, m) = combination
            placement = Placement(Group(n, p.tp, p.pp), Group(m, d.tp, d.pp))
            yield bound / placement.gpus, bound, placement


def _best(rates: dict[Shape, float]) -> Shape | None:
    served = [shape for shape, rate in rates.items() if rate]
    return min(served, key=lambda shape: (-round(rates[shape] / shape.gpus, 4), shape.gpus, shape), default=None)
