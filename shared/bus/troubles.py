"""What went wrong on a connection."""

import time
from collections import Counter
from typing import Literal, get_args

import structlog

Trouble = Literal[
    "bus_permission_violation",
    "bus_slow_consumer",
    "bus_connection_error",
    "bus_malformed_message",
    "bus_handler_failed",
    "bus_reconnect_callback_failed",
    "bus_drain_failed",
    "bus_close_failed",
]
LOG_INTERVAL_SECONDS = 10.0
ALARMS: set[Trouble] = {
    "bus_permission_violation"
}  # never passes by itself: a wrong key, a wrong configuration, or an intruder


class Troubles:
    """Counts what goes wrong on one connection by kind, and logs each kind at most once in LOG_INTERVAL_SECONDS."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(get_args(Trouble), 0))  # from 0, so that the first is a rise
        self._logged_at: dict[str, float] = {}
        self._log = structlog.get_logger()

    def note(self, kind: Trouble, error: BaseException, subject: str = "") -> None:
        self.counts[kind] += 1
        now = time.monotonic()
        if now - self._logged_at.get(kind, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
            self._logged_at[kind] = now
            unexpected = error if kind == "bus_handler_failed" else None  # only there the traceback tells more
            say = self._log.error if kind in ALARMS else self._log.warning
            say(kind, subject=subject, error=str(error), count=self.counts[kind], exc_info=unexpected)
