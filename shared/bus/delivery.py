"""What happens to a message that has arrived, whichever bus brought it."""

from collections.abc import Callable, Mapping
from typing import Any

from shared.bus.troubles import Troubles
from shared.messages.codec import MalformedMessage, decode
from shared.messages.instances import Beat
from shared.telemetry.traces import context_from, within

Answer = Callable[[object], None]


class Delivery:
    """Decodes the messages of one subscription and runs its handler on them. Whatever goes wrong ends here.

    `answer`, there for a request, sends its reply.
    """

    def __init__(
        self, subject: str, handler: Callable[[Any], Any], types: tuple[type, ...], troubles: Troubles
    ) -> None:
        self._subject = subject
        self._handler = handler
        self._types = types
        self._troubles = troubles

    async def handle(self, subject: str, data: bytes, headers: Mapping[str, str] | None, answer: Answer | None) -> None:
        """For a handler that may wait."""
        try:
            with within(context_from(headers)):
                reply = await self._handler(self._read(subject, data))
            if reply is not None and answer is not None:
                answer(reply)
        except Exception as error:
            self._note(error)

    def handle_now(self, subject: str, data: bytes, headers: Mapping[str, str] | None, answer: Answer | None) -> None:
        """For a plain function."""
        try:
            with within(context_from(headers)):
                reply = self._handler(self._read(subject, data))
            if reply is not None and answer is not None:
                answer(reply)
        except Exception as error:
            self._note(error)

    def _read(self, subject: str, data: bytes) -> object:
        try:
            message = decode(data, *self._types)
            if isinstance(message, Beat):
                message.check_sender(subject)
        except MalformedMessage as error:
            raise _Unreadable from error
        return message

    def _note(self, error: Exception) -> None:
        if isinstance(error, _Unreadable):
            assert error.__cause__ is not None
            self._troubles.note("bus_malformed_message", error.__cause__, self._subject)
        else:
            self._troubles.note("bus_handler_failed", error, self._subject)


class _Unreadable(Exception):
    """What has come is no message. A handler may meet a MalformedMessage too: a reply to what it asked."""
