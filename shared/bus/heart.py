"""Beats: an instance says once a second, and at once when something important changed, what it is and how loaded."""

import asyncio
import time
from collections.abc import Callable

import structlog
from msgspec.structs import replace

from shared.bus.interface import Bus, BusError
from shared.messages.instances import Beat

log = structlog.get_logger()

BEAT_SECONDS = 1.0


class Heart:
    """Publishes `describe(number)` at 1 Hz and after every `changed()`."""

    def __init__(self, bus: Bus, describe: Callable[[int], Beat]) -> None:
        self._bus = bus
        self._describe = describe
        self._changed = asyncio.Event()
        self._number = 0

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        while True:
            await self.beat()
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()

    async def beat(self) -> None:
        self._number += 1
        beat = replace(self._describe(self._number), sent_at=time.time())
        try:
            await self._bus.publish(Beat.SUBJECT.format(role=beat.role, instance=beat.instance), beat)
        except BusError as error:  # the next one, or the reconnect, makes up for it
            log.debug("beat_not_sent", error=str(error))
