"""What the planner is asked, and the searches for a rate that its worker processes do."""

import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from services.scheduler.planner.candidates import Cluster
from services.scheduler.planner.goodput import FIRST_STEP, LEAST_REQUESTS, Promise, first_guess, highest_rate
from services.scheduler.simulator.placement import Placement
from services.scheduler.simulator.profile import ModelProfile, Profile
from services.scheduler.simulator.simulation import Policy, Setup
from services.scheduler.simulator.workload import Trace

DEFAULT = Policy()
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
    servable: bool = False  # only what the engine can be started as

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
class Job:
    """A search for the highest rate with one trace."""

    setup: Setup
    trace: Trace
    promise: Promise
    guess: float = 0.0  # 0: by a formula
    first_step: float = FIRST_STEP  # from there: small if the guess is a good one
    tolerance: float = 0.02
    most: float = math.inf
    least: int = LEAST_REQUESTS


def _search(job: Job) -> tuple[float, int]:
    guess = job.guess or first_guess(job.setup, job.trace, job.promise)
    return highest_rate(
        job.setup, job.trace, job.promise, guess, job.tolerance, job.most, job.least, first_step=job.first_step
    )


class Workers:
    """Does searches in processes, and counts them. Answers come in the order of the jobs, whoever is ready first."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.searches = self.simulations = 0

    def run(self, jobs: Sequence[Job]) -> list[float]:
        """The largest placements, which take longest, begin first."""
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].setup.placement.gpus)
        found = [(0.0, 0)] * len(jobs)
        for index, answer in zip(
            order, self._executor.map(_search, [jobs[i] for i in order], chunksize=1), strict=True
        ):
            found[index] = answer
        self.searches += len(found)
        self.simulations += sum(simulations for _, simulations in found)
        return [rate for rate, _ in found]
