"""What went wrong on a connection."""

import time
from collections import Counter

import structlog

LOG_INTERVAL_SECONDS = 10.0
ALARMS = {"bus_permission_violation"}  # never passes by itself: a wrong key, a wrong configuration, or an intruder


class Troubles:
    """Counts what goes wrong on one connection by kind, and logs each kind at most once in LOG_INTERVAL_SECONDS."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._log = structlog.get_logger()

    def note(self, kind: str, error: BaseException, subject: str = "") -> None:
        self.counts[kind] += 1
        now = time.monotonic()
        if now - self._logged_at.get(kind, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
            self._logged_at[kind] = now
            unexpected = error if kind == "bus_handler_failed" else None  # only there the traceback tells more
            say = self._log.error if kind in ALARMS else self._log.warning
            say(kind, subject=subject, error=str(error), count=self.counts[kind], exc_info=unexpected)
