"""Whether a run says something about the server, or about the generator. Pure."""

from dataclasses import dataclass

from services.scheduler.planner.goodput import Promise

LATE_SECONDS = 0.010
LATE_SHARE = 0.05  # of the TTFT target
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
