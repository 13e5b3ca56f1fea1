"""The requests that ended lately: percentiles, attainment and goodput for people who watch. Pure: times are given."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from shared.messages.requests import Outcome
from shared.specs.ids import RequestId
from shared.telemetry.metrics import Verdict

KEPT_REQUESTS = 4096  # for the figures; of more than this within WINDOW_SECONDS, the latest count
SHOWN_REQUESTS = 50
WINDOW_SECONDS = 60.0  # of percentiles and attainment
HISTORY_SECONDS, BUCKET_SECONDS = 300.0, 5.0
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRequest:
    request: RequestId
    trace: str  # "": it was not traced
    ended_at: float  # Unix seconds
    outcome: Outcome
    attempts: int
    prompt_tokens: int
    output_tokens: int
    ttft_seconds: float | None
    tpot_seconds: float | None
    total_seconds: float
    verdict: Verdict | None


class RecentRequests:
    def __init__(self) -> None:
        self._ended: deque[EndedRequest] = deque(maxlen=KEPT_REQUESTS)

    def note(self, ended: EndedRequest) -> None:
        self._ended.append(ended)

    def latest(self) -> list[EndedRequest]:
        """The newest first."""
        return [self._ended[-1 - index] for index in range(min(SHOWN_REQUESTS, len(self._ended)))]

    def figures(self, now: float) -> dict[str, Any]:
        """Of the last WINDOW_SECONDS. Attainment is None while nothing was judged."""
        recent = [one for one in self._ended if now - one.ended_at < WINDOW_SECONDS]
        judged = [one.verdict for one in recent if one.verdict is not None]
        return {
            "window_seconds": WINDOW_SECONDS,
            "requests": len(recent),
            "failed": sum(one.outcome == "failed" for one in recent),
            "ttft": percentiles([one.ttft_seconds for one in recent if one.ttft_seconds is not None]),
            "tpot": percentiles([one.tpot_seconds for one in recent if one.tpot_seconds is not None]),
            "judged": len(judged),
            "attainment": judged.count("met") / len(judged) if judged else None,
        }

    def history(self, now: float) -> list[dict[str, float]]:
        """The last HISTORY_SECONDS in whole buckets, oldest first; the newest one is not over yet.

        Good is what met its targets, or finished where there are none; per second.
        """
        newest = now // BUCKET_SECONDS
        buckets = int(HISTORY_SECONDS / BUCKET_SECONDS)
        good, rest, tokens = [0] * buckets, [0] * buckets, [0] * buckets
        for one in self._ended:
            index = int(buckets - 1 - (newest - one.ended_at // BUCKET_SECONDS))
            if 0 <= index < buckets:
                counted = good if is_good(one) else rest
                counted[index] += 1
                tokens[index] += one.output_tokens
        return [
            {
                "at": (newest - buckets + 1 + index) * BUCKET_SECONDS,
                "good_per_second": good[index] / BUCKET_SECONDS,
                "other_per_second": rest[index] / BUCKET_SECONDS,
                "tokens_per_second": tokens[index] / BUCKET_SECONDS,
            }
            for index in range(buckets)
        ]


def is_good(ended: EndedRequest) -> bool:
    return ended.verdict == "met" if ended.verdict is not None else ended.outcome in ("stop", "length")


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """By nearest rank; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return {f"p{percent}": ordered[ceil(percent / 100 * len(ordered)) - 1] for percent in PERCENTILES}
