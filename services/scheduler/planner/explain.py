"""Why a placement is as good as it is: which constraint binds a little above its goodput."""

from dataclasses import dataclass
from typing import Literal

from services.scheduler.planner.goodput import Promise, long_enough
from services.scheduler.simulator.simulation import Setup, simulate
from services.scheduler.simulator.workload import Trace

Constraint = Literal[
    "prefill compute", "decode step", "decode KV memory", "prefill KV memory", "KV transfer", "none found"
]
BEYOND = 1.1  # times the goodput: there the first promise to break shows
FULL = 0.97


@dataclass(frozen=True, slots=True)
class Reason:
    binds: Constraint
    ttft: float  # attainment beyond the goodput
    tpot: float
    detail: str


def explain(setup: Setup, trace: Trace, promise: Promise, rate: float) -> Reason:
    """Simulate a little beyond `rate` and look at what is missed and what is full."""
    busy = long_enough(trace, BEYOND * rate, promise).stretched(1 / (BEYOND * rate))
    outcome = simulate(setup, busy)
    kept = outcome.attainment(promise.ttft, promise.tpot)
    summary = outcome.summary()
    shares, stages = summary["utilisation"], summary["stages"]
    detail = f"at {BEYOND:.1f} times the goodput {kept['ttft']:.0%} keep TTFT, {kept['tpot']:.0%} keep TPOT"
    apart = setup.placement.prefill is not None
    if kept["joint"] >= promise.share:
        binds: Constraint = "none found"
    elif apart and stages["transfer"]["mean_s"] > stages["decode_queue"]["mean_s"] + stages["prefill_queue"]["mean_s"]:
        binds = "KV transfer"
    elif shares["decode_kv_peak"] > FULL and kept["tpot"] <= kept["ttft"]:
        binds = "decode KV memory"
    elif apart and shares["prefill_kv_peak"] > FULL:
        binds = "prefill KV memory"
    else:
        binds = "prefill compute" if kept["ttft"] < kept["tpot"] else "decode step"
    return Reason(binds, kept["ttft"], kept["tpot"], detail)
