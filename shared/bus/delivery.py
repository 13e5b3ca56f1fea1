"""What happens to a message that has arrived, whichever bus brought it."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from shared.messages.codec import MalformedMessage, decode
from shared.telemetry.traces import received_context

LOG_INTERVAL_SECONDS = 10.0
Answer = Callable[[object], Awaitable[None]]


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
            self._log.warning(kind, subject=subject, error=str(error), count=self.counts[kind], exc_info=unexpected)


class Delivery:
    """Decodes the messages of one subscription and runs its handler on them."""

    def __init__(
        self, subject: str, handler: Callable[[Any], Awaitable[object]], types: tuple[type, ...], troubles: Troubles
    ) -> None:
        self._subject = subject
        self._handler = handler
        self._types = types
        self._troubles = troubles

    async def handle(self, data: bytes, headers: Mapping[str, str] | None, answer: Answer | None) -> None:
        """Run the handler; `answer`, there for a request, sends its reply. Whatever goes wrong ends here."""
        try:
            message = decode(data, *self._types)
        except MalformedMessage as error:
            self._troubles.note("bus_malformed_message", error, self._subject)
            return
        try:
            with received_context(headers):
                reply = await self._handler(message)
            if reply is not None and answer is not None:
                await answer(reply)
        except Exception as error:
            self._troubles.note("bus_handler_failed", error, self._subject)
