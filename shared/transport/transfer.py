"""The messages of one transfer: posted in order, awaited and, whatever happens, brought to an end."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Protocol

from shared.specs.ids import InstanceId
from shared.transport.interface import TransferFailed
from shared.transport.pieces import SizesDisagree

MOST_IN_FLIGHT = 64  # posting more at once would hold up the event loop, and ucxx runs out of prepared futures
SETTLE_SECONDS = (
    0.25  # what an abandoned transfer gets to end by itself before all of its peer's transfers are cut with it
)

Message = asyncio.Future[None]


class MessageFailed(Exception):
    """A message cannot be posted, or has ended without its bytes."""


class Link(Protocol):
    """What the messages travel on."""

    def raise_if_lost(self) -> None: ...
    async def give_up(self, messages: Collection[Message], cause: str) -> None: ...
    async def cut(self, cause: str) -> None: ...


class Transfer:
    """Draws its messages from `posts`: drawing one posts it."""

    def __init__(self, link: Link, peer: InstanceId, posts: Iterator[Message], size: int) -> None:
        self._link, self._peer, self._posts, self._size = link, peer, posts, size
        self._in_flight: list[Message] = []
        self.first_ended_at = self.last_ended_at = 0.0  # time.perf_counter()

    def post(self) -> None:
        """Post as many of the messages as may be in flight."""
        posted = list(islice(self._posts, MOST_IN_FLIGHT - len(self._in_flight)))
        for message in posted:
            message.add_done_callback(self._note_end)
        self._in_flight += posted

    async def first(self) -> None:
        """Wait for the first message. MessageFailed."""
        await _ended(self._in_flight[:1])

    async def all(self) -> None:
        """Post and wait for all of them; MessageFailed as soon as one failed. Cancelled, it leaves them as they are."""
        self.post()
        while self._in_flight:
            oldest = self._in_flight[: MOST_IN_FLIGHT // 2]
            await _ended(oldest)
            del self._in_flight[: len(oldest)]
            self.post()
            await asyncio.sleep(0)  # also when there was nothing to wait for

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
            await uninterrupted(self._link.give_up(self._in_flight, f"the peer was not asked: {error}"))
            raise

    def _note_end(self, message: Message) -> None:
        self.last_ended_at = time.perf_counter()
        self.first_ended_at = self.first_ended_at or self.last_ended_at

    def _cause_of(self, error: MessageFailed) -> str:
        try:
            self._link.raise_if_lost()
        except MessageFailed as lost:
            return str(lost)
        return str(error)

    async def _failed(self, cause: str, *, retryable: bool = True) -> TransferFailed:
        await uninterrupted(self._link.cut(cause))
        return TransferFailed(self._peer, cause, retryable=retryable, size=self._size)

    async def _settle(self) -> None:
        """Mostly the rest arrives within milliseconds, and the other transfers of this link can go on."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.all()
        except (TimeoutError, MessageFailed):
            await self._link.cut("a transfer on it was cancelled")


async def _ended(messages: Iterable[Message]) -> None:
    done, _ = await asyncio.wait(messages, return_when=asyncio.FIRST_EXCEPTION)
    for message in done:
        error = message.exception()
        if error is not None:
            raise MessageFailed(str(error)) from error


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
