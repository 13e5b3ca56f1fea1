"""Any bus, some messages of which get lost, doubled or late on their way out. For tests."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from shared.bus.interface import Bus, BusError, BusTimeout, Subscription
from shared.bus.key_value import Bucket, KeyValue

# As of MemoryBus: the delay in seconds of each copy of a message; () loses it. A reply has the subject of its request.
Deliveries = Callable[[str, object], Sequence[float]]


class FaultyBus(Bus):
    def __init__(self, bus: Bus, deliveries: Deliveries) -> None:
        self._bus, self._deliveries = bus, deliveries
        self.troubles, self.closed = bus.troubles, bus.closed
        self._late: set[asyncio.Task[None]] = set()

    async def publish(self, subject: str, message: object, *, traced: bool = False) -> None:
        self.post(subject, message, traced=traced)
        await asyncio.sleep(0)

    def post(self, subject: str, message: object, *, traced: bool = False) -> None:
        for seconds in self._deliveries(subject, message):
            if seconds:
                late = asyncio.create_task(self._publish_late(seconds, subject, message))
                self._late.add(late)
                late.add_done_callback(self._late.discard)
            else:
                self._bus.post(subject, message, traced=traced)

    async def request(self, subject: str, message: object, *replies: type, timeout_seconds: float) -> Any:
        """The first copy is answered to the caller, the second one to nobody."""
        copies = self._deliveries(subject, message)
        try:
            async with asyncio.timeout(timeout_seconds):
                reply: object = None
                for number, seconds in enumerate(copies):
                    await asyncio.sleep(seconds)
                    answer = await self._bus.request(subject, message, *replies, timeout_seconds=timeout_seconds)
                    reply = answer if number == 0 else reply
                ways = self._deliveries(subject, reply) if copies else ()
                await asyncio.sleep(ways[0] if ways else 2 * timeout_seconds)
                return reply
        except TimeoutError:
            raise BusTimeout(f"{subject}: lost, says the test") from None

    async def subscribe(
        self, subject: str, handler: Callable[[Any], Awaitable[object]], *types: type, queue: str = ""
    ) -> Subscription:
        return await self._bus.subscribe(subject, handler, *types, queue=queue)

    async def hear(self, subject: str, handler: Callable[[Any], object], *types: type, queue: str = "") -> Subscription:
        return await self._bus.hear(subject, handler, *types, queue=queue)

    def key_value(self, bucket: Bucket, kind: type) -> KeyValue:
        return self._bus.key_value(bucket, kind)

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._bus.on_reconnect(callback)

    @property
    def connected(self) -> bool:
        return self._bus.connected

    async def close(self) -> None:
        for late in self._late:
            late.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)
        await self._bus.close()

    async def _publish_late(self, seconds: float, subject: str, message: object) -> None:
        await asyncio.sleep(seconds)
        with suppress(BusError):  # closed meanwhile: then it is lost
            await self._bus.publish(subject, message)
