"""Whether a run says something about the server, or about the generator. Pure."""

import math
from dataclasses import dataclass

from services.scheduler.planner.goodput import Promise

LATE_SECONDS = 0.010
LATE_SHARE = 0.05  # of the TTFT target
LEAST_TARGETS = 2  # TTFT targets that the requests of a search are spread over
MOST_CPU_SHARE = 0.9  # of a core: beyond, what was read late is not the server's lateness


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the run is not valid; nothing if it is."""

    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.reasons


def allowed_lateness(promise: Promise) -> float:
    return max(LATE_SECONDS, LATE_SHARE * promise.ttft)


def judge_burst(rate: float, requests: int, seconds: float, promise: Promise) -> Verdict:
    """Of a rate that seems to be kept: whether its requests, sent over `seconds`, were more than the target absorbs.

    If they all come at once and are served in time, so they are at any higher rate, and a search for it never ends.
    """
    if seconds >= LEAST_TARGETS * promise.ttft:
        return Verdict(())
    wanted = math.ceil(LEAST_TARGETS * promise.ttft * rate)
    reason = f"{requests} requests at {rate:.3g}/s are a burst that a TTFT of {promise.ttft:g} s absorbs"
    return Verdict((f"{reason}: ask for at least --requests {max(wanted, requests + 1)}",))


def judge(late_p99: float, cpu_share: float, promise: Promise) -> Verdict:
    """`late_p99`: seconds between due and sent; `cpu_share`: of one core, used by the generator while it sent."""
    reasons = []
    allowed = allowed_lateness(promise)
    if late_p99 > allowed:
        reasons.append(
            f"the generator fell behind: 1 % of the requests left more than {1e3 * late_p99:.0f} ms late, "
            f"{1e3 * allowed:.0f} ms are allowed"
        )
    if cpu_share > MOST_CPU_SHARE:
        reasons.append(f"the generator used {cpu_share:.0%} of a core and is itself the bottleneck")
    return Verdict(tuple(reasons))
