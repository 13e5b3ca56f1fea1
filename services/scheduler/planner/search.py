"""The placement with the highest per-GPU goodput: the paper's algorithms, and what they leave out."""

import math
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from services.scheduler.planner.candidates import Shape, shapes
from services.scheduler.planner.goodput import Goodput, over_seeds
from services.scheduler.planner.neighbours import neighbours
from services.scheduler.planner.phases import Combination, Phases, combinations, measure, pairs
from services.scheduler.planner.question import COARSE, Job, Question, Workers
from services.scheduler.simulator.placement import Group, Placement
from services.scheduler.simulator.profile import BadProfile
from services.scheduler.simulator.simulation import Policy
from services.scheduler.simulator.workload import Trace
from shared.policy.decode import Order

JOINT_AT_ONCE = 4
CHUNKED = ", chunked"  # behind the name of a placement that mixes chunks into decode steps
CONFIRMING_REQUESTS = 1000
NEAR = 1.12  # first step from a rate that is nearly known


@dataclass(frozen=True, slots=True)
class Found:
    """A placement and its goodput."""

    placement: Placement
    policy: Policy
    goodput: Goodput

    @property
    def per_gpu(self) -> float:
        return self.goodput.rate / self.placement.gpus

    @property
    def name(self) -> str:
        chunked = self.placement.prefill is None and self.policy.order == "chunked"
        return f"{self.placement}{CHUNKED}" if chunked else str(self.placement)

    @property
    def rank(self) -> tuple[float, int, str]:
        """Best first; equals by fewer GPUs, then by name."""
        return (-round(self.per_gpu, 4), self.placement.gpus, self.name)


@dataclass(frozen=True, slots=True)
class Result:
    phases: Phases
    found: list[Found]  # best first
    published: Placement | None  # the answer of the paper's algorithm for the rate that was asked for
    impossible: dict[str, str]
    searches: int
    simulations: int


def search(question: Question, executor: Executor) -> Result:
    """Screen shapes phase by phase, pairs by an upper bound, then measure the best few with every seed."""
    possible, impossible = shapes(question.profile, question.model, question.cluster, servable=question.servable)
    if not possible:
        raise BadProfile(f"{question.model.name} cannot be placed: " + "; ".join(sorted(set(impossible.values()))))
    screening, workers = question.traces[0], Workers(executor)
    combined = combinations(possible, question.cluster, across_nodes=question.across_nodes)
    phases = measure(question, combined, screening, workers)
    found = _joint(question, combined, phases, screening, workers)
    together = _colocated(question, possible, screening, workers)
    found = _confirm(question, found + together, workers)
    found = _look_around(question, found, possible, screening, workers)
    return Result(
        phases,
        found,
        _published(question, phases, found),
        impossible | _useless(possible, phases) | _useless_together(question, possible, together),
        workers.searches,
        workers.simulations,
    )


def _useless(possible: list[Shape], phases: Phases) -> dict[str, str]:
    """Shapes that exist but serve nothing, and why."""
    reasons = {}
    for name, target, rates in (("prefill", "TTFT", phases.prefill), ("decoding", "TPOT", phases.decode)):
        for shape in possible:
            if shape not in rates:
                reasons[f"{shape} for {name}"] = "leaves no room for the other phase, or for one that serves anything"
            elif not rates[shape]:
                reasons[f"{shape} for {name}"] = f"misses the {target} target at any rate"
    return reasons


def _useless_together(question: Question, possible: list[Shape], together: list[Found]) -> dict[str, str]:
    most = question.cluster.gpus_per_node
    too_large = {f"{shape} colocated": "needs more GPUs than a node has" for shape in possible if shape.gpus > most}
    return too_large | {one.name: "misses a target at any rate" for one in together if not one.goodput.rate}


def _joint(
    question: Question, combined: list[Combination], phases: Phases, trace: Trace, workers: Workers
) -> list[Found]:
    """Best bound first, until what is left cannot be among the best any more."""
    waiting = sorted(pairs(combined, phases), key=lambda pair: (-pair[0], pair[2].gpus, str(pair[2])))
    found: list[Found] = []
    best = 0.0
    while waiting and waiting[0][0] > 0.97 * best and len(found) < 10 * JOINT_AT_ONCE:
        batch, waiting = waiting[:JOINT_AT_ONCE], waiting[JOINT_AT_ONCE:]
        jobs = [
            Job(question.setup(pair), trace, question.promise, 0.88 * bound, NEAR, COARSE) for _, bound, pair in batch
        ]
        rates = workers.run(jobs)
        found += [_coarse(pair, question.policy, rate) for (_, _, pair), rate in zip(batch, rates, strict=True)]
        best = max(one.per_gpu for one in found)
    return found


def _colocated(question: Question, possible: list[Shape], trace: Trace, workers: Workers) -> list[Found]:
    orders: tuple[Order, ...] = ("prefill_priority", "chunked")
    options = [
        (Placement(None, Group(1, shape.tp, shape.pp)), replace(question.policy, order=order))
        for shape in possible
        if shape.gpus <= question.cluster.gpus_per_node
        for order in orders
    ]
    jobs = [Job(question.setup(pair, policy), trace, question.promise, tolerance=COARSE) for pair, policy in options]
    rates = workers.run(jobs)
    return [_coarse(pair, policy, rate) for (pair, policy), rate in zip(options, rates, strict=True)]


def _coarse(placement: Placement, policy: Policy, rate: float) -> Found:
    return Found(placement, policy, over_seeds([rate]))


def _confirm(question: Question, found: list[Found], workers: Workers) -> list[Found]:
    """The best disaggregated and colocated ones once more, with every seed and the full traces; these come first."""
    ranked = sorted((one for one in found if one.goodput.rate), key=lambda one: one.rank)
    apart = [one for one in ranked if one.placement.prefill is not None][:4]
    together = [one for one in ranked if one.placement.prefill is None][:2]
    confirmed = _with_every_seed(question, apart + together, workers)
    rest = [one for one in ranked if one not in apart + together]
    return sorted(confirmed, key=lambda one: one.rank) + rest


def _with_every_seed(question: Question, chosen: list[Found], workers: Workers) -> list[Found]:
    seeds = len(question.traces)
    jobs = [
        Job(
            question.setup(one.placement, one.policy),
            trace,
            question.promise,
            one.goodput.rate,
            1 + COARSE,
            question.tolerance,
            least=CONFIRMING_REQUESTS,
        )
        for one in chosen
        for trace in question.traces
    ]
    rates = workers.run(jobs)
    return [replace(one, goodput=over_seeds(rates[i * seeds : (i + 1) * seeds])) for i, one in enumerate(chosen)]


def _look_around(
    question: Question, found: list[Found], possible: list[Shape], trace: Trace, workers: Workers
) -> list[Found]:
    """The neighbours of the best as well; where one of them is better, its own."""
    seen = {(one.placement, one.policy) for one in found}
    while found:
        best = found[0]
        beside = neighbours(best.placement, possible, question.cluster, across_nodes=question.across_nodes)
        beside = [placement for placement in beside if (placement, best.policy) not in seen]
        seen |= {(placement, best.policy) for placement in beside}
        jobs = [
            Job(question.setup(placement, best.policy), trace, question.promise, best.goodput.rate, tolerance=COARSE)
            for placement in beside
        ]
        rates = workers.run(jobs)
        new = [_coarse(placement, best.policy, rate) for placement, rate in zip(beside, rates, strict=True) if rate]
        better = _with_every_seed(question, [one for one in new if one.per_gpu > best.per_gpu], workers)
        worse = [one for one in new if one.per_gpu <= best.per_gpu]
        found = sorted([best, *better], key=lambda one: one.rank) + found[1:] + sorted(worse, key=lambda one: one.rank)
        if found[0] == best:
            break
    return found


def _published(question: Question, phases: Phases, found: list[Found]) -> Placement | None:
    """The paper's own answer: copies of the best pair (algorithm 2), or of the best shape of each phase (1)."""
    if not question.across_nodes:
        one_each = [
            f for f in found if f.placement.prefill and (f.placement.prefill.count, f.placement.decode.count) == (1, 1)
        ]
        if not one_each:
            return None
        best = min(one_each, key=lambda one: one.rank)
        copies = copies_for(question.rate, best.goodput.rate)
        prefill, decode = best.placement.prefill, best.placement.decode
        assert prefill is not None
        return Placement(replace(prefill, count=copies), replace(decode, count=copies))
    p, d = phases.best_prefill, phases.best_decode
    if p is None or d is None:
        return None
    n, m = copies_for(question.rate, phases.prefill[p]), copies_for(question.rate, phases.decode[d])
    return Placement(Group(n, p.tp, p.pp), Group(m, d.tp, d.pp))


def copies_for(rate: float, each: float) -> int:
    return max(1, math.ceil(rate / each - 1e-9))
