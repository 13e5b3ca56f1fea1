"""Leadership on a bus: asks the store what `Leadership` wants to know, and says when the term has changed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from services.scheduler.leadership import Attempt, Away, Free, Held, Leadership, Outcome, Taken
from shared.bus.interface import Bus, BusError, BusUnavailable
from shared.bus.key_value import Bucket, RevisionChanged, StoreUnavailable
from shared.messages.codec import MalformedMessage
from shared.messages.instances import Beat
from shared.messages.leadership import Lease
from shared.specs.ids import InstanceId

log = structlog.get_logger()

LEASE_SECONDS = 3.0
ATTEMPT_SECONDS = 1.0  # for the store to answer
STEP_SECONDS = 0.05


class Campaign:
    def __init__(
        self,
        bus: Bus,
        me: InstanceId,
        lease_seconds: float,
        hears: Callable[[], bool],
        on_term: Callable[[int], Awaitable[None]],
    ) -> None:
        """`hears`: whether the bus lets us hear others at all. `on_term` is told the term in which we lead from now on;
        0: we do not any more."""
        self._me, self._hears, self._on_term = me, hears, on_term
        self._store = bus.key_value(Bucket(Lease.BUCKET, ttl_seconds=lease_seconds), Lease)
        self._leadership = Leadership(me, lease_seconds, time.monotonic())
        self._revision: int | None = None  # of our lease, as far as we know
        self._told_term = 0
        self._is_away = False

    @property
    def term(self) -> int:
        return self._leadership.term

    def leads(self) -> bool:
        """Whether to act as the leader now. Ask it before each act: a stopped process wakes up deposed."""
        return self._leadership.leads(time.monotonic())

    def heard(self, beat: Beat) -> None:
        is_scheduler = beat.role == "scheduler"
        self._leadership.heard(beat.instance, beat.term, time.monotonic(), is_scheduler=is_scheduler)

    async def run(self) -> None:
        """For ever."""
        while True:
            now = time.monotonic()
            if not self._hears():
                self._leadership.deaf(now)
            elif (attempt := self._leadership.attempt(now)) is not None:
                outcome = await self._ask(attempt)
                self._leadership.answered(outcome, time.monotonic())
                self._note(outcome)
            if self._leadership.term != self._told_term:
                await self._tell(self._leadership.term)
            await asyncio.sleep(STEP_SECONDS)

    async def _tell(self, term: int) -> None:
        log.info("leadership_changed", term=term)
        try:
            await self._on_term(term)
        except BusUnavailable as error:  # told again when the bus is back
            log.warning("leadership_not_taken_up", term=term, error=str(error))
        else:
            self._told_term = term

    async def resign(self) -> None:
        """Let another one lead at once. `run` must have ended."""
        if self._revision is not None:
            with suppress(BusError):  # the lease ends by itself
                await self._store.delete(Lease.KEY, self._revision)

    async def _ask(self, attempt: Attempt) -> Outcome:
        lease = Lease(holder=self._me)
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                try:
                    if attempt.revision is None:
                        return Held(await self._store.create(Lease.KEY, lease))
                    return Held(await self._store.update(Lease.KEY, lease, attempt.revision))
                except RevisionChanged:
                    there = await self._store.get(Lease.KEY)
                    return Free() if there is None else Taken(there.value.holder, there.revision)
        except (StoreUnavailable, TimeoutError, MalformedMessage) as error:
            if not self._is_away:
                log.warning("lease_store_away", error=str(error) or type(error).__name__)
            return Away()

    def _note(self, outcome: Outcome) -> None:
        if self._is_away and not isinstance(outcome, Away):
            log.info("lease_store_back")
        self._is_away = isinstance(outcome, Away)
        if not self._is_away:
            self._revision = outcome.revision if isinstance(outcome, Held) else None
