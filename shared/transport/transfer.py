"""The messages of one transfer: posted in order, awaited and, whatever happens, brought to an end."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Protocol

from shared.specs.ids import InstanceId
from shared.transport.interface import TransferFailed
from shared.transport.pieces import SizesDisagree

MOST_IN_FLIGHT = 64  # posting more at once would hold up the event loop, and ucxx runs out of prepared futures
SETTLE_SECONDS = 0.25  # what a cancelled transfer gets to end by itself, before all others of its link are cut with it

Message = asyncio.Future[None]


class MessageFailed(Exception):
    """A message cannot be posted, or has ended without its bytes."""


class Link(Protocol):
    """What the messages travel on."""

    def raise_if_lost(self) -> None: ...
    async def give_up(self, messages: Collection[Message], cause: str) -> None: ...
    async def cut(self, cause: str) -> None: ...


class Transfer:
    """Draws its messages from `posts` (drawing one posts it), a new one whenever one has ended."""

    def __init__(self, link: Link, peer: InstanceId, posts: Iterator[Message], size: int) -> None:
        self._link, self._peer, self._posts, self._size = link, peer, posts, size
        self._in_flight: set[Message] = set()
        self._head: Message | None = None
        self._first, self._last = asyncio.Event(), asyncio.Event()
        self._failure: MessageFailed | None = None
        self._given_up = False
        self.first_ended_at = self.last_ended_at = 0.0  # time.perf_counter()

    def start(self) -> None:
        """Post as many of the messages as may be in flight. MessageFailed."""
        for message in islice(self._posts, MOST_IN_FLIGHT - len(self._in_flight)):
            self._head = self._head or message
            self._in_flight.add(message)
            message.add_done_callback(self._on_end)

    async def first(self) -> None:
        """Wait until the first message has ended well; MessageFailed if it cannot. Others may have failed since."""
        await self._first.wait()
        if not self.first_ended_at:
            self._raise_failure()

    async def all(self) -> None:
        """Wait until all have ended. MessageFailed as soon as one has failed."""
        await self._last.wait()
        self._raise_failure()

    @asynccontextmanager
    async def guarded(self, timeout_seconds: float) -> AsyncIterator[None]:
        """However the body ends, nothing is in flight afterwards. Troubles of the transfer become TransferFailed."""
        deadline = asyncio.timeout(timeout_seconds)
        try:
            async with deadline:
                yield
        except asyncio.CancelledError:
            await uninterrupted(self._settle())
            raise
        except MessageFailed as error:
            raise await self._failed(self._cause_of(error)) from error
        except SizesDisagree as error:
            raise await self._failed(str(error), retryable=False) from error
        except Exception as error:
            if deadline.expired():
                raise await self._failed(f"not done after {timeout_seconds} s") from error
            self._given_up = True
            await uninterrupted(self._link.give_up(list(self._in_flight), f"the peer was not asked: {error}"))
            raise

    def _on_end(self, message: Message) -> None:
        self._in_flight.discard(message)
        error = message.exception()
        if error is not None:
            self._fail(MessageFailed(str(error)))
        if self._failure is not None or self._given_up:
            return
        self.last_ended_at = time.perf_counter()
        if message is self._head:
            self.first_ended_at = self.last_ended_at
            self._first.set()
        try:
            self.start()
        except MessageFailed as lost:
            self._fail(lost)
        if not self._in_flight:
            self._last.set()

    def _fail(self, failure: MessageFailed) -> None:
        self._failure = self._failure or failure
        self._first.set()
        self._last.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _cause_of(self, error: MessageFailed) -> str:
        try:
            self._link.raise_if_lost()
        except MessageFailed as lost:
            return str(lost)
        return str(error)

    async def _failed(self, cause: str, *, retryable: bool = True) -> TransferFailed:
        self._given_up = True
        await uninterrupted(self._link.cut(cause))
        return TransferFailed(self._peer, cause, retryable=retryable, size=self._size)

    async def _settle(self) -> None:
        """Mostly the rest arrives within milliseconds, and the other transfers of this link can go on."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.all()
        except (TimeoutError, MessageFailed):
            await self._link.cut("a transfer on it was cancelled")


async def uninterrupted(work: asyncio.Task[None] | Coroutine[Any, Any, None]) -> None:
    """Wait for the end of `work` even while being cancelled; the cancellation takes effect afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
