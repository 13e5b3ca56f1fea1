"""Hears everybody's beats, and says who is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from shared.bus.interface import Bus, Subscription
from shared.messages.instances import Beat
from shared.policy.presence import Echo, Presence
from shared.specs.ids import InstanceId

log = structlog.get_logger()

LOST_SECONDS = 4.0  # three beats missed and the fourth overdue
SWEEP_SECONDS = 0.25


class Neighbours:
    """Calls `greet` when somebody new is heard, `on_lost` once when somebody has fallen silent."""

    def __init__(
        self,
        instance: InstanceId,
        greet: Callable[[], None],
        on_lost: Callable[[InstanceId], Awaitable[None]],
        on_beat: Callable[[Beat], Awaitable[None]] | None = None,
    ) -> None:
        self._greet, self._on_lost, self._on_beat = greet, on_lost, on_beat
        self._instance = instance
        self._echo = Echo()
        self._presence = Presence(LOST_SECONDS)

    async def listen(self, bus: Bus) -> Subscription:
        return await bus.subscribe(Beat.SUBJECT.format(role="*", instance="*"), self._heard, Beat)

    def expect(self, instance: InstanceId) -> None:
        """Somebody was heard of in another way."""
        self._presence.expect(instance, time.monotonic())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            if self._echo.deaf(now):
                self._presence.pardon(now)
            for instance in self._presence.lost(now):
                log.warning("neighbour_lost", neighbour=instance)
                await self._on_lost(instance)

    async def _heard(self, beat: Beat) -> None:
        if beat.instance == self._instance:
            self._echo.heard(time.monotonic())
            return
        if beat.instance not in self._presence:
            self._greet()
        self._presence.heard(beat.instance, time.monotonic())
        if self._on_beat is not None:
            await self._on_beat(beat)
