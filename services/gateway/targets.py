"""The latency targets of a request, and whether it met them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from services.gateway.errors import bad_value
from shared.messages.requests import Outcome
from shared.telemetry.metrics import TargetsFrom, Verdict

Admission = Literal[  # whom to refuse
    "queue",  # who finds the queue full
    "slo",  # and who would get a first token later than its target
]
TTFT_HEADER, TPOT_HEADER = "x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms"  # milliseconds; llm-d's names


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTargets:
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    origin: TargetsFrom = "default"

    def or_of(self, headers: Mapping[str, str]) -> "LatencyTargets":
        """Those that a client names in its headers; what it leaves out stays. ApiError if one is no number."""
        ttft, tpot = _target(headers, TTFT_HEADER), _target(headers, TPOT_HEADER)
        if ttft is None and tpot is None:
            return self
        return LatencyTargets(
            ttft_seconds=self.ttft_seconds if ttft is None else ttft,
            tpot_seconds=self.tpot_seconds if tpot is None else tpot,
            origin="request",
        )

    def judge(self, outcome: Outcome, ttft_seconds: float | None, tpot_seconds: float | None) -> Verdict | None:
        """None without a target, or if its client gave it up. Who gets no answer is missed by all of its targets."""
        if outcome == "aborted" or (self.ttft_seconds is None and self.tpot_seconds is None):
            return None
        failed = outcome == "failed"
        late = self.ttft_seconds is not None and (failed or (ttft_seconds or 0.0) > self.ttft_seconds)
        slow = self.tpot_seconds is not None and (failed or (tpot_seconds or 0.0) > self.tpot_seconds)
        if late and slow:
            return "both_missed"
        if late or slow:
            return "ttft_missed" if late else "tpot_missed"
        return "met"


NO_TARGETS = LatencyTargets()


def _target(headers: Mapping[str, str], name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = -1.0
    if not 0.0 < milliseconds < float("inf"):
        raise bad_value(name, f"The header '{name}' must be a number of milliseconds above 0")
    return milliseconds / 1e3
