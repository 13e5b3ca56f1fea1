"""The highest rate at which enough requests keep both promises (paper sections 2.2 and 4)."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from services.scheduler.simulator.simdistserve import simulate_as_authors
from services.scheduler.simulator.simulation import Setup, simulate
from services.scheduler.simulator.targets import Targets
from services.scheduler.simulator.workload import Trace

MOST_DOUBLINGS = 24
LEAST_RATE = 1e-4  # a request in three hours; much below it clock times lose the digits in which latencies differ
FIRST_STEP = 1.3  # from the guess to the next rate
LIFETIMES = 2
LEAST_REQUESTS = 300
# Two-sided 95 % of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the service owes: TTFT and TPOT in seconds, both kept for a share of the requests."""

    ttft: float
    tpot: float
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.ttft <= 0 or self.tpot <= 0 or not 0 < self.share <= 1:
            raise ValueError("targets must be positive and the share between 0 and 1")


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests per second of the whole placement: mean over seeds, half width of its 95 % confidence interval."""

    rate: float
    half_width: float | None  # None: a single seed says nothing about spread
    rates: tuple[float, ...]
    simulations: int


def keeps(setup: Setup, trace: Trace, rate: float, promise: Promise) -> bool:
    """Whether the promise holds for `trace` (mean rate 1/s) at `rate`. Stops as soon as that is clear."""
    allowed = math.floor((1 - promise.share) * len(trace) + 1e-9)
    targets = Targets(promise.ttft, promise.tpot, allowed)
    simulate(setup, trace.stretched(1 / rate), targets)
    return not targets.lost


def long_enough(trace: Trace, rate: float, promise: Promise, least: int = LEAST_REQUESTS) -> Trace:
    """As much of `trace` as shows a steady state: LIFETIMES times as long as a request may live, within its length.

    A burst of a few seconds says nothing: a large placement takes all of it in before the first answer has ended.
    """
    lifetime = _finite(promise.ttft) + statistics.fmean(trace.outputs) * _finite(promise.tpot)
    wanted = math.ceil(LIFETIMES * lifetime * rate)
    return trace.first(min(len(trace), max(least, wanted)))


def _finite(seconds: float) -> float:
    return seconds if math.isfinite(seconds) else 0.0


def highest_rate(
    setup: Setup,
    trace: Trace,
    promise: Promise,
    guess: float = 1.0,
    tolerance: float = 0.02,
    most: float = math.inf,
    least: int = LEAST_REQUESTS,
    *,
    first_step: float = FIRST_STEP,
) -> tuple[float, int]:
    """(rate, simulations): a bracket that widens from `guess` until it holds the answer, then bisection.

    The rate is the highest one found to be kept; within `tolerance` above it a lost one is known. 0 if not even a
    request now and then is served as promised; `most` if that is kept as well, whatever lies beyond.
    `least`: requests of every simulation.
    """
    simulations = 0

    def kept(rate: float) -> bool:
        nonlocal simulations
        simulations += 1
        return keeps(setup, long_enough(trace, rate, promise, least), rate, promise)

    return search_rate(kept, guess, tolerance, most, LEAST_RATE, first_step=first_step), simulations


def search_rate(
    kept: Callable[[float], bool],
    guess: float,
    tolerance: float,
    most: float = math.inf,
    least: float = 0.0,
    *,
    first_step: float = FIRST_STEP,
) -> float:
    """The highest rate that is `kept`: a bracket that widens from `guess` until it holds the answer, then bisection.

    0 if none from `least` on is. `first_step`: how far from the guess it looks next.
    """
    low, high, factor = 0.0, math.inf, first_step
    rate = min(guess, most)
    for _ in range(MOST_DOUBLINGS):
        if kept(rate):
            low, rate = rate, min(rate * factor, most)
            if low == most:
                return most
        else:
            high, rate = rate, rate / factor
        if (low and high < math.inf) or rate < least:
            break
        factor = min(4.0, max(factor * factor, factor * 1.3))
    if not low or high == math.inf:
        return low
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        if kept(middle):
            low = middle
        else:
            high = middle
    return low


def goodput(
    setup: Setup,
    traces: Sequence[Trace] | Callable[[int], Trace],
    promise: Promise,
    *,
    seeds: int = 1,
    guess: float = 0.0,
    tolerance: float = 0.02,
    most: float = math.inf,
    least: int = LEAST_REQUESTS,
) -> Goodput:
    """The mean over `seeds` traces, each at mean rate 1/s. The first answer is where the next search begins."""
    rates: list[float] = []
    simulations = 0
    for seed in range(seeds):
        trace = traces(seed) if callable(traces) else traces[seed]
        start = (rates[0] if rates and rates[0] else guess) or first_guess(setup, trace, promise)
        rate, count = highest_rate(setup, trace, promise, start, tolerance, most, least)
        rates.append(rate)
        simulations += count
    return over_seeds(rates, simulations)


def goodput_as_authors(setup: Setup, traces: Sequence[Trace], promise: Promise, tolerance: float = 0.02) -> Goodput:
    """By the rules of the authors' simulator."""
    asked: list[float] = []

    def kept(trace: Trace, rate: float) -> bool:
        asked.append(rate)
        joint = simulate_as_authors(setup, trace.stretched(1 / rate)).attainment(promise.ttft, promise.tpot)["joint"]
        return joint >= promise.share

    guesses = [first_guess(setup, trace, promise) for trace in traces]
    rates = [
        search_rate(partial(kept, trace), guess, tolerance, least=LEAST_RATE)
        for trace, guess in zip(traces, guesses, strict=True)
    ]
    return over_seeds(rates, len(asked))


def over_seeds(rates: Sequence[float], simulations: int = 0) -> Goodput:
    half_width = None
    if len(rates) > 1:
        factor = STUDENT.get(len(rates) - 1, 1.96)
        half_width = factor * statistics.stdev(rates) / math.sqrt(len(rates))
    return Goodput(statistics.fmean(rates), half_width, tuple(rates), simulations)


def first_guess(setup: Setup, trace: Trace, promise: Promise) -> float:
    """Where the search for the rate begins: what the slower phase can do at best, by the mean lengths."""
    prompt, answer = statistics.fmean(trace.inputs), statistics.fmean(trace.outputs)
    prefill = setup.placement.prefill or setup.placement.decode
    a, b, c = setup.model.times[prefill.tp].prefill
    seconds = (a + b * prompt + c * prompt * prompt) / 1000 / prefill.pp
    bounds = [] if setup.free_prefill else [0.7 * prefill.count / seconds]  # at more the queue is too long for a TTFT
    if answer > 1:
        bounds.append(_decode_rate(setup, prompt + answer / 2, promise.tpot) / answer)
    return min(bounds, default=1.0)


def _decode_rate(setup: Setup, context: float, tpot: float) -> float:
    """Tokens per second with as many sequences as memory holds and a step may take."""
    group, (a, b, c) = setup.placement.decode, setup.model.times[setup.placement.decode.tp].decode_large
    fixed = a + setup.profile.overhead.iteration_ms
    each = b * context + c  # milliseconds a step for every sequence
    room = setup.model.kv_capacity(group.tp, group.pp, setup.profile.memory_bytes) / context
    in_time = (tpot * 1000 - fixed) / each * group.pp if math.isfinite(tpot) else math.inf
    batch = max(1.0, min(room, in_time))
    return group.count * batch / (fixed + each * batch / group.pp) * 1000
