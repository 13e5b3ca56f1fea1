"""What a bus promises, and the ways it can fail.

Order: messages from one connection to one subscription arrive in the order they were published. Two subscriptions of
one connection are not ordered against each other. A plain publish to nobody is lost without an error, and so is
whatever was on its way when the server went down: whoever must not lose a message counts, asks again, or requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from shared.bus.troubles import Troubles

if TYPE_CHECKING:
    from shared.bus.key_value import Bucket, KeyValue

M = TypeVar("M")
R = TypeVar("R")


class BusError(Exception):
    """The bus could not do what was asked."""


class NoResponder(BusError):
    """Nobody is subscribed to the subject of a request. Known at once, not after the timeout."""


class BusTimeout(BusError):
    """Somebody has the request, or had, but no reply came in time. It may still take effect."""


class BusUnavailable(BusError):
    """There is no connection: it could not be made, is closed, or is down and the send buffer is full."""


class NotPermitted(BusError):
    """The server will not let our identity subscribe to that. A refused publish raises nothing: it is counted."""


class MessageTooBig(BusError):
    """The server would not take a message of this size. Nothing was sent."""


class Subscription(Protocol):
    async def drain(self) -> None:
        """End it; return when every message that the server had already routed here has been handled.

        A handler must not drain its own subscription: it would wait for itself.
        """
        ...


class Bus(Protocol):
    """One process's connection. Belongs to one event loop."""

    troubles: Troubles
    closed: asyncio.Event  # set when it is over for good, asked for or not: a service then has to end

    async def publish(self, subject: str, message: object, *, traced: bool = False) -> None:
        """Hand the message to the network now. `traced` sends the trace context along: it costs, so never for tokens.

        Raises BusUnavailable or MessageTooBig. While the connection is down, messages are kept up to a bound.
        """
        ...

    def post(self, subject: str, message: object, *, traced: bool = False) -> None:
        """As `publish`, from where nothing can be awaited: it leaves at the end of the event loop's turn."""
        ...

    async def request(self, subject: str, message: object, *replies: type[R], timeout_seconds: float) -> R:
        """Send the message with the current trace context and return the reply, which must be of one of `replies`.

        Raises NoResponder, BusTimeout, BusUnavailable, MessageTooBig, or MalformedMessage for a reply of another kind.
        """
        ...

    async def subscribe(
        self, subject: str, handler: Callable[[M], Awaitable[object]], *types: type[M], queue: str = ""
    ) -> Subscription:
        """Call `handler` with each message on `subject`, one by one; return when the server has the subscription.

        `subject` may have the wildcards `*` (one word) and `>` (the rest). Of the subscriptions in one `queue` one gets
        each message. What the handler returns is the reply to a request, None is no reply. The sender's trace context
        is current while it runs. Messages of other types and malformed ones are counted, logged and dropped; an
        exception of the handler is logged and ends nothing. Raises NotPermitted, or BusUnavailable.
        """
        ...

    async def hear(
        self, subject: str, handler: Callable[[M], object], *types: type[M], queue: str = ""
    ) -> Subscription:
        """As `subscribe`, for a plain function, which is cheap and waits for nothing: it is called sooner."""
        ...

    def key_value(self, bucket: "Bucket", kind: type[M]) -> "KeyValue[M]":
        """The values of class `kind` in `bucket`. Asks nobody: what is wrong is found at the first use."""
        ...

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` after each lost and regained connection, when the subscriptions are live again."""
        ...

    @property
    def connected(self) -> bool: ...

    async def close(self) -> None:
        """Drain every subscription, send what is waiting, disconnect. Safe to call twice."""
        ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
