"""Asking the workers what they know of requests: after a gap, a reconnect, or when one has been silent too long."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from services.gateway.events import Asked, Event
from services.gateway.requests import RequestLife
from services.gateway.topology import Topology
from shared.bus.interface import Bus, BusError, NoResponder
from shared.messages.codec import MalformedMessage
from shared.messages.instances import Beat
from shared.messages.sealed import unseal
from shared.messages.tokens import ResumedTokens, ResumeTokens, Sealed, TokenBatch, TokenRow, Want
from shared.policy.presence import Echo
from shared.specs.ids import InstanceId, RequestId

log = structlog.get_logger()

ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 0.05  # between two rounds: what becomes known meanwhile goes into one message
MOST_WANTS = 256  # in one message
RETURN_SECONDS = 3.0  # after an outage of the bus: by then everybody has connected again, and was heard
LONGEST_OUTAGE_SECONDS = 30.0  # then it is no longer waited for


class Resync:
    """One round of questions at a time: every instance that may hold a request is asked about all that are in doubt."""

    def __init__(
        self,
        bus: Bus,
        gateway: InstanceId,
        seal_key: bytes,
        topology: Topology,
        feed: Callable[[RequestLife, Event], None],
    ) -> None:
        self._bus, self._gateway, self._seal_key = bus, gateway, seal_key
        self._topology, self._feed = topology, feed
        self._doubtful: dict[RequestId, RequestLife] = {}
        self._wanted = asyncio.Event()
        self._next_step: dict[InstanceId, int] = {}
        self._down_since: float | None = None
        self._regained_at = float("-inf")
        self._echo = Echo()

    def ask_about(self, lives: Iterable[RequestLife]) -> None:
        for life in lives:
            self._doubtful[life.request] = life
            self._wanted.set()

    def reconnected(self, now: float) -> None:
        self._regained_at = now

    def heard_ourselves(self, now: float) -> None:
        """Our own beat came back. After a silence of the bus that is like a new connection."""
        if self._echo.heard(now):
            self.reconnected(now)

    def is_gap(self, batch: TokenBatch) -> bool:
        """Whether batches of this source were lost before this one."""
        expected = self._next_step.get(batch.source, 0)
        self._next_step[batch.source] = max(expected, batch.step + 1)
        return batch.step > expected

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            self._wanted.clear()
            doubtful, self._doubtful = list(self._doubtful.values()), {}
            for first in range(0, len(doubtful), MOST_WANTS):
                await self._round(doubtful[first : first + MOST_WANTS])
            self._forget_lost_sources()

    async def _round(self, lives: Sequence[RequestLife]) -> None:
        wants = {life.request: want for life in lives if (want := life.want()) is not None}
        if not wants:
            return
        now = time.monotonic()
        holders = self._topology.holders(now) if self._bus.connected else []
        answers = await asyncio.gather(*(self._ask(beat, tuple(wants.values())) for beat in holders))
        rows = [row for answer in answers if answer is not None for row in answer.rows if row.request in wants]
        known = {row.request for row in rows if _has_it(row, wants[row.request])}
        everybody_answered = None not in answers and self._all_can_be_asked(now)
        by_name = {life.request: life for life in lives}
        for row in rows:
            self._feed(by_name[row.request], row)
        for request, want in wants.items():
            if request in known or everybody_answered:
                self._feed(by_name[request], Asked(want.attempt, request in known))
        log.info("tokens_asked_for", requests=len(wants), instances=len(holders), known=len(known))

    def _all_can_be_asked(self, now: float) -> bool:
        """Not while the bus is down, nor just after: those who compute go on meanwhile, and know what they hold."""
        if self._bus.connected and not self._echo.deaf(now):
            self._down_since = None
            return now - self._regained_at >= RETURN_SECONDS
        self._down_since = now if self._down_since is None else self._down_since
        return now - self._down_since >= LONGEST_OUTAGE_SECONDS

    async def _ask(self, beat: Beat, wants: tuple[Want, ...]) -> ResumedTokens | None:
        """What one instance knows; None if it did not say."""
        subject = ResumeTokens.SUBJECT.format(role=beat.role, instance=beat.instance)
        question = ResumeTokens(gateway=self._gateway, wants=wants)
        try:
            answer = await self._bus.request(subject, question, Sealed, ResumedTokens, timeout_seconds=ANSWER_SECONDS)
            return unseal(answer, self._seal_key, ResumedTokens) if isinstance(answer, Sealed) else answer
        except NoResponder:  # it is gone, and knows nothing any more
            return ResumedTokens(source=beat.instance, rows=())
        except MalformedMessage as error:
            self._bus.troubles.note("bus_malformed_message", error, subject)
            return None
        except BusError:
            return None

    def _forget_lost_sources(self) -> None:
        alive = {beat.instance for beat in self._topology.holders(time.monotonic())}
        self._next_step = {source: step for source, step in self._next_step.items() if source in alive}


def _has_it(row: TokenRow, want: Want) -> bool:
    """An instance that is behind us held the request once; it is not the one that goes on with it."""
    return row.attempt == want.attempt and (row.index >= want.next_index or row.finish is not None)
