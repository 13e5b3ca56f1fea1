"""The placement with the highest per-GPU goodput: the paper's algorithms, and what they leave out."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from services.scheduler.planner.candidates import Cluster, Shape, fits_nodes, fits_segments, shapes
from services.scheduler.planner.goodput import LEAST_REQUESTS, Goodput, Promise, goodput
from services.scheduler.simulator.placement import Group, Placement
from services.scheduler.simulator.profile import BadProfile, ModelProfile, Profile
from services.scheduler.simulator.simulation import Policy, Setup
from services.scheduler.simulator.workload import Trace
from shared.policy.decode import Order

RATIOS = ((1, 1), (2, 1), (3, 1), (3, 2), (4, 1), (1, 2), (1, 3), (2, 3))
JOINT_AT_ONCE = 4
DEFAULT = Policy()
CONFIRMING_REQUESTS = 1000
COARSE = 0.05  # relative step at which screening ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the planner."""

    profile: Profile
    model: ModelProfile
    cluster: Cluster
    traces: tuple[Trace, ...]  # one per seed, each at mean rate 1/s; the first one serves for screening
    promise: Promise
    rate: float  # requests per second that must be served
    across_nodes: bool  # KV may cross nodes (algorithm 1); else it stays inside one (algorithm 2)
    link_gigabytes_per_second: float
    hop_seconds: float | None = None
    policy: Policy = DEFAULT
    tolerance: float = 0.02

    def setup(self, placement: Placement, policy: Policy | None = None, *, free_prefill: bool = False) -> Setup:
        return Setup(
            profile=self.profile,
            model=self.model,
            placement=placement,
            policy=policy or self.policy,
            link_gigabytes_per_second=self.link_gigabytes_per_second,
            hop_seconds=self.hop_seconds,
            free_prefill=free_prefill,
        )


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
        return f"{self.placement}, chunked" if chunked else str(self.placement)

    @property
    def rank(self) -> tuple[float, int, str]:
        """Best first; equals by fewer GPUs, then by name."""
        return (-round(self.per_gpu, 4), self.placement.gpus, self.name)


@dataclass(frozen=True, slots=True)
class Phases:
    """What each shape can do if the other phase costs nothing: algorithm 1's simu_prefill and simu_decode."""

    prefill: dict[Shape, float]
    decode: dict[Shape, float]

    @property
    def best_prefill(self) -> Shape | None:
        return _best(self.prefill)

    @property
    def best_decode(self) -> Shape | None:
        return _best(self.decode)


@dataclass(frozen=True, slots=True)
class Result:
    phases: Phases
    found: list[Found]  # best first
    published: Placement | None  # the answer of the paper's algorithm for the rate that was asked for
    impossible: dict[str, str]
    searches: int
    simulations: int


@dataclass(frozen=True, slots=True)
class _Job:
    setup: Setup
    traces: tuple[Trace, ...]
    promise: Promise
    guess: float
    tolerance: float
    most: float = math.inf
    least: int = LEAST_REQUESTS


def _search(job: _Job) -> Goodput:
    return goodput(
        job.setup,
        job.traces,
        job.promise,
        seeds=len(job.traces),
        guess=job.guess,
        tolerance=job.tolerance,
        most=job.most,
        least=job.least,
    )


def search(question: Question, workers: Executor) -> Result:
    """Screen shapes phase by phase, pairs by an upper bound, then measure the best few with every seed."""
    possible, impossible = shapes(question.profile, question.model, question.cluster)
    if not possible:
        raise BadProfile(f"{question.model.name} cannot be placed: " + "; ".join(sorted(set(impossible.values()))))
    screening = question.traces[0]
    counted = _Counted(workers)
    phases = _phases(question, possible, screening, counted)
    found = _joint(question, phases, screening, counted) + _colocated(question, possible, screening, counted)
    for shape in possible:
        if not phases.prefill[shape]:
            impossible[f"{shape} for prefill"] = "misses the TTFT target at any rate"
        if not phases.decode[shape]:
            impossible[f"{shape} for decoding"] = "misses the TPOT target at any rate"
    found = _confirm(question, found, counted)
    published = _published(question, phases, found)
    return Result(phases, found, published, impossible, counted.searches, counted.simulations)


class _Counted:
    """Searches in worker processes; answers come in the order of the questions, whoever is ready first."""

    def __init__(self, workers: Executor) -> None:
        self._workers = workers
        self.searches = self.simulations = 0

    def run(self, jobs: Iterable[_Job]) -> list[Goodput]:
        answers = list(self._workers.map(_search, jobs, chunksize=1))
        self.searches += len(answers)
        self.simulations += sum(answer.simulations for answer in answers)
        return answers


def _phases(question: Question, possible: list[Shape], trace: Trace, workers: _Counted) -> Phases:
    """Decoding is not asked for more than any prefill in the ratios can bring."""
    first_tokens = replace(trace, outputs=[1] * len(trace))
    promise = question.promise
    jobs = []
    for shape in possible:
        group = Group(1, shape.tp, shape.pp)
        only_first = replace(promise, tpot=math.inf)
        jobs.append(_Job(question.setup(Placement(group, group)), (first_tokens,), only_first, 0.0, COARSE))
    prefill = dict(zip(possible, [answer.rate for answer in workers.run(jobs)], strict=True))
    most = max(n / m for n, m in RATIOS) * max(prefill.values())
    jobs = []
    for shape in possible if most else []:
        group = Group(1, shape.tp, shape.pp)
        only_steps = replace(promise, ttft=math.inf)
        setup = question.setup(Placement(group, group), free_prefill=True)
        jobs.append(_Job(setup, (trace,), only_steps, 0.0, COARSE, most))
    rates = [answer.rate for answer in workers.run(jobs)] or [0.0] * len(possible)
    return Phases(prefill, dict(zip(possible, rates, strict=True)))


def _pairs(question: Question, phases: Phases) -> Iterator[tuple[float, float, Placement]]:
    """(bound on the goodput per GPU, on the goodput, placement) of every pair of shapes and ratio that fits."""
    for p, prefill_rate in phases.prefill.items():
        for d, decode_rate in phases.decode.items():
            for n, m in RATIOS:
                fits = fits_nodes if question.across_nodes else fits_segments
                bound = min(n * prefill_rate, m * decode_rate)
                if bound and fits(p, d, question.cluster, (n, m)):
                    placement = Placement(Group(n, p.tp, p.pp), Group(m, d.tp, d.pp))
                    yield bound / placement.gpus, bound, placement


def _joint(question: Question, phases: Phases, trace: Trace, workers: _Counted) -> list[Found]:
    """Best bound first, until what is left cannot be among the best any more."""
    pairs = sorted(_pairs(question, phases), key=lambda pair: (-pair[0], pair[2].gpus, str(pair[2])))
    found: list[Found] = []
    best = 0.0
    while pairs and pairs[0][0] > 0.97 * best and len(found) < 10 * JOINT_AT_ONCE:
        batch, pairs = pairs[:JOINT_AT_ONCE], pairs[JOINT_AT_ONCE:]
        jobs = [
            _Job(question.setup(pair), (trace,), question.promise, 0.85 * bound, COARSE) for _, bound, pair in batch
        ]
        answers = workers.run(jobs)
        found += [Found(pair, question.policy, g) for (_, _, pair), g in zip(batch, answers, strict=True)]
        best = max(one.per_gpu for one in found)
    return found


def _colocated(question: Question, possible: list[Shape], trace: Trace, workers: _Counted) -> list[Found]:
    orders: tuple[Order, ...] = ("prefill_priority", "chunked")
    options = [
        (Placement(None, Group(1, shape.tp, shape.pp)), replace(question.policy, order=order))
        for shape in possible
        if shape.gpus <= question.cluster.gpus_per_node
        for order in orders
    ]
    jobs = [_Job(question.setup(pair, policy), (trace,), question.promise, 0.0, COARSE) for pair, policy in options]
    answers = workers.run(jobs)
    return [Found(pair, policy, g) for (pair, policy), g in zip(options, answers, strict=True)]


def _confirm(question: Question, found: list[Found], workers: _Counted) -> list[Found]:
    """The best disaggregated and colocated ones once more, with every seed and the full traces; these come first."""
    ranked = sorted((one for one in found if one.goodput.rate), key=lambda one: one.rank)
    apart = [one for one in ranked if one.placement.prefill is not None][:4]
    together = [one for one in ranked if one.placement.prefill is None][:2]
    chosen = apart + together
    jobs = [
        _Job(
            question.setup(one.placement, one.policy),
            question.traces,
            question.promise,
            one.goodput.rate,
            question.tolerance,
            least=CONFIRMING_REQUESTS,
        )
        for one in chosen
    ]
    answers = workers.run(jobs)
    confirmed = [replace(one, goodput=g) for one, g in zip(chosen, answers, strict=True)]
    rest = [one for one in ranked if one not in chosen]
    return sorted(confirmed, key=lambda one: one.rank) + rest


def _published(question: Question, phases: Phases, found: list[Found]) -> Placement | None:
    """The paper's own answer: copies of the best pair (algorithm 2), or of the best shape of each phase (1)."""
    if not question.across_nodes:
        pairs = [
            f for f in found if f.placement.prefill and (f.placement.prefill.count, f.placement.decode.count) == (1, 1)
        ]
        if not pairs:
            return None
        best = min(pairs, key=lambda one: one.rank)
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


def _best(rates: dict[Shape, float]) -> Shape | None:
    served = [shape for shape, rate in rates.items() if rate]
    return min(served, key=lambda shape: (-round(rates[shape] / shape.gpus, 4), shape.gpus, shape), default=None)
