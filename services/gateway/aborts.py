"""Ended requests that somebody may still be working on: told to stop, and told again until their end is seen. Pure."""

from dataclasses import dataclass

from shared.messages.requests import AbortRequest
from shared.messages.tokens import RequestInterrupted, TokenRow
from shared.specs.ids import RequestId

REPEAT_SECONDS = 1.0
MOST_TIMES = 5


@dataclass(slots=True)
class _Abort:
    attempt: int
    due_at: float
    times: int = 0


class Aborts:
    """Aborts go to everybody and may get lost. One forgotten too early is begun again by the next stray token."""

    def __init__(self) -> None:
        self._aborts: dict[RequestId, _Abort] = {}

    def begin(self, request: RequestId, attempt: int, now: float) -> None:
        """Stop everybody who works on attempts of the request up to this one."""
        known = self._aborts.get(request)
        if known is None or known.attempt < attempt:
            self._aborts[request] = _Abort(attempt, due_at=now)

    def see(self, message: TokenRow | RequestInterrupted, now: float) -> None:
        """Something came of a request, or of an attempt, that is over: its end, or from somebody who has not heard."""
        known = self._aborts.get(message.request)
        ended = isinstance(message, RequestInterrupted) or message.finish is not None
        if not ended:
            self.begin(message.request, message.attempt, now)
        elif known is not None and known.attempt <= message.attempt:
            del self._aborts[message.request]

    def due(self, now: float) -> list[AbortRequest]:
        """What must now be sent."""
        messages = []
        for request, abort in list(self._aborts.items()):
            if now < abort.due_at:
                continue
            if abort.times == MOST_TIMES:
                del self._aborts[request]
                continue
            abort.times += 1
            abort.due_at = now + REPEAT_SECONDS
            messages.append(AbortRequest(request=request, attempt=abort.attempt))
        return messages
