"""Values that outlive who wrote them: the last one under each key of a bucket, with the revision to compare and set by.

For what a late joiner must find (who leads, which plan holds), not for traffic: serving goes on without it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shared.bus.interface import BusError

M = TypeVar("M")

STORE_SECONDS = 2.0  # for one operation
WATCH_SECONDS = 2.0  # between two looks at what is watched; what is written is seen at once
SETTLE_SECONDS = 0.05  # a write is heard of a little before it can be read


class StoreUnavailable(BusError):
    """Its server is away, keeps no values, or has no room left. A write may still have taken effect."""


class RevisionChanged(BusError):
    """The key is not at the revision that was named: somebody else wrote it, or its time is over. Nothing changed."""


@dataclass(frozen=True, slots=True)
class Bucket:
    name: str  # letters, digits, - and _
    ttl_seconds: float | None = None  # a value is gone so long after it was written; None: it stays


@dataclass(frozen=True, slots=True)
class Entry(Generic[M]):
    value: M
    revision: int  # grows with every write to the bucket, and goes on growing where the store was lost and made anew


class KeyValue(Protocol[M]):
    """One bucket, of values of one message class. It comes into being with the first write.

    A key is words of letters, digits, - and _ with dots between. Every operation takes STORE_SECONDS at most, and
    raises StoreUnavailable; reading raises MalformedMessage for a value of another class.
    """

    async def get(self, key: str) -> Entry[M] | None:
        """None: nobody wrote it, it was deleted, or its time is over."""
        ...

    async def create(self, key: str, value: M) -> int:
        """Write what is not there; the revision. RevisionChanged if it is there."""
        ...

    async def update(self, key: str, value: M, revision: int) -> int:
        """Replace what is at `revision`; the new one. RevisionChanged if it is not there any more."""
        ...

    async def put(self, key: str, value: M) -> int:
        """Write it, whatever is there; the revision."""
        ...

    async def delete(self, key: str, revision: int) -> None:
        """Remove what is at `revision`. RevisionChanged if it is not there any more."""
        ...

    def watch(self, key: str) -> AsyncGenerator[Entry[M] | None, None]:
        """What is there now, then whatever it changes to, for ever: also over outages of the server.

        The latest counts: of several changes in a row some may not be seen. The end of a value's time is seen within
        WATCH_SECONDS. Waits while the store is away. Raises NotPermitted.
        """
        ...


async def follow(
    get: Callable[[], Awaitable[Entry[M] | None]], written: asyncio.Event
) -> AsyncGenerator[Entry[M] | None, None]:
    """What `get` gives, and again whenever that has changed. `written` is set when it may have."""
    last: Entry[M] | None = None
    is_first, task = True, asyncio.current_task()
    while True:
        if task is not None and task.cancelling():  # Python 3.11 forgets it where a reply comes at the same moment
            raise asyncio.CancelledError
        heard = written.is_set()
        written.clear()
        try:
            entry = await get()
            if heard and entry == last:
                await asyncio.sleep(SETTLE_SECONDS)
                entry = await get()
        except StoreUnavailable:
            pass
        else:
            if is_first or entry != last:
                is_first, last = False, entry
                yield entry
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await written.wait()
        except TimeoutError:
            pass
