"""What happens to a message that has arrived, whichever bus brought it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from shared.bus.troubles import Troubles
from shared.messages.codec import MalformedMessage, decode
from shared.messages.instances import Beat
from shared.telemetry.traces import context_from, within

Answer = Callable[[object], Awaitable[None]]


class Delivery:
    """Decodes the messages of one subscription and runs its handler on them."""

    def __init__(
        self, subject: str, handler: Callable[[Any], Awaitable[object]], types: tuple[type, ...], troubles: Troubles
    ) -> None:
        self._subject = subject
        self._handler = handler
        self._types = types
        self._troubles = troubles

    async def handle(self, subject: str, data: bytes, headers: Mapping[str, str] | None, answer: Answer | None) -> None:
        """Run the handler; `answer`, there for a request, sends its reply. Whatever goes wrong ends here."""
        try:
            message = decode(data, *self._types)
            if isinstance(message, Beat):
                message.check_sender(subject)
        except MalformedMessage as error:
            self._troubles.note("bus_malformed_message", error, self._subject)
            return
        try:
            with within(context_from(headers)):
                reply = await self._handler(message)
            if reply is not None and answer is not None:
                await answer(reply)
        except Exception as error:
            self._troubles.note("bus_handler_failed", error, self._subject)
