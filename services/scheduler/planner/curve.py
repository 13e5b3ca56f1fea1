"""Attainment over rate, as the paper draws it in figure 8."""

from collections.abc import Sequence
from concurrent.futures import Executor

from services.scheduler.planner.goodput import Promise, long_enough
from services.scheduler.simulator.simulation import Setup, simulate
from services.scheduler.simulator.workload import Trace

SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.6)  # of the goodput: most where it bends

Curve = list[dict[str, float]]  # rate, and the shares of requests that keep ttft, tpot and both (joint)


def attainment_curve(setup: Setup, trace: Trace, promise: Promise, rates: Sequence[float]) -> Curve:
    """`trace` has a mean rate of 1/s; each point is as long a simulation as the search for goodput does."""
    points = []
    for rate in rates:
        asked = long_enough(trace, rate, promise, least=min(len(trace), 1000)).stretched(1 / rate)
        points.append({"rate": rate, **simulate(setup, asked).attainment(promise.ttft, promise.tpot)})
    return points


def curves_around(
    setups: Sequence[tuple[Setup, float]], trace: Trace, promise: Promise, workers: Executor
) -> list[Curve]:
    """One for each setup, around its goodput."""
    jobs = [
        workers.submit(attainment_curve, setup, trace, promise, [share * goodput for share in SHARES])
        for setup, goodput in setups
    ]
    return [job.result() for job in jobs]
