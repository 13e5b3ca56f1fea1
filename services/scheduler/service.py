"""The dispatcher on a bus: messages become events, effects become messages. Nothing is decided here.

Of several schedulers one leads. The others hear the same beats and endings, so that they know at once who is there and
who has what when it is their turn; what their dispatchers decide meanwhile nobody hears.
"""

import asyncio
import time
from collections import Counter

from services.scheduler.campaign import LEASE_SECONDS, Campaign
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import (
    Aborted,
    Accept,
    BeatHeard,
    Closing,
    Deposed,
    Effect,
    Ended,
    Event,
    Forget,
    KvComputed,
    KvLost,
    Refuse,
    ReportInstance,
    SendDecode,
    SendPrefill,
    Submitted,
    Ticked,
)
from services.scheduler.journal import Journal
from services.scheduler.performer import Parcel, Performer
from services.scheduler.traffic import Traffic
from shared.bus.heart import Heart
from shared.bus.interface import Bus, Subscription
from shared.messages.handoff import KvExpired, KvNoted, KvReady
from shared.messages.instances import Beat, Load
from shared.messages.requests import MOST_AVOIDED, AbortRequest, Accepted, Refused, RequestEnded, SubmitRequest
from shared.policy.presence import Echo
from shared.specs.ids import InstanceId, RequestId
from shared.telemetry.metrics import SchedulerMetrics
from shared.worker.lifecycle import missing, stop_with

TICK_SECONDS = 0.25
AT_HOME = (Forget, ReportInstance, SendPrefill, SendDecode)  # need no leader: a start is then answered here
START_SECONDS = 1.0  # for an instance to answer a start
CANCEL_SECONDS = 0.2


class SchedulerService:
    """Events reach the dispatcher one after the other, in the order they come: `feed` does not await."""

    def __init__(
        self,
        bus: Bus,
        instance: InstanceId,
        dispatcher: Dispatcher,
        journal: Journal | None,
        metrics: SchedulerMetrics,
        start_seconds: float = START_SECONDS,
        traffic: Traffic | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._bus, self._instance, self._dispatcher = bus, instance, dispatcher
        self._traffic = traffic or Traffic([])
        self._journal, self._metrics = journal, metrics
        self._echo = Echo()
        self._campaign = Campaign(bus, instance, lease_seconds, self._hears, self._on_term)
        self._performer = Performer(bus, instance, metrics, self.feed, start_seconds, self._campaign)
        self._work_in: list[Subscription] = []  # of the leader only
        self._heart = Heart(bus, self._describe)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or the bus is closed for good; then send what waits here back to its gateways."""
        try:
            self.feed(Ticked(now=time.monotonic()))
            subscriptions = await self._listen()
            async with asyncio.TaskGroup() as tasks:
                loops = (self._tick(), self._heart.run(), stop_with(self._bus, stop))
                running = [tasks.create_task(loop) for loop in loops]
                campaign = tasks.create_task(self._campaign.run())
                await stop.wait()
                await self._hand_over(subscriptions)
                await _end([campaign, *running])
                await self._campaign.resign()
        finally:
            await self._performer.give_up_starts()
            if self._journal is not None:
                self._journal.close()

    def feed(self, event: Event) -> list[Effect]:
        """Let the dispatcher decide, write it down, begin to do it."""
        began = time.perf_counter()
        effects = self._dispatcher.step(event)
        self._metrics.decision_seconds.observe(time.perf_counter() - began)
        if self._journal is not None:
            self._journal.record(event, effects)
        leads = self._campaign.leads()
        for effect in effects:
            if leads or isinstance(effect, AT_HOME):
                self._performer.perform(effect)
        return effects

    @property
    def idle(self) -> bool:
        """No request is known here, and nothing is kept for one."""
        return not self._dispatcher.board.live and not self._performer.parcels

    def missing(self) -> list[str]:
        """What keeps requests from being placed; empty if nothing does."""
        unsettled = "" if self._dispatcher.settled else "it has not listened for long enough to know every instance"
        return missing(self._bus, draining=False, broken=unsettled)

    # -- from the bus -------------------------------------------------------------------------------------------------

    async def _listen(self) -> list[Subscription]:
        bus = self._bus
        return [
            await bus.hear(Beat.SUBJECT.format(role="*", instance="*"), self._on_beat, Beat),
            await bus.hear(RequestEnded.SUBJECT, self._on_ended, RequestEnded),
            await bus.hear(AbortRequest.SUBJECT, self._on_abort, AbortRequest),
            await bus.hear(KvExpired.SUBJECT, self._on_kv_expired, KvExpired),
        ]

    async def _on_term(self, term: int) -> None:
        """Take work in, in this term; or no more. A leader that was stopped still has its ear at the door: so each term
        has a queue group of its own, and what comes to two of them is answered by one."""
        former, self._work_in = self._work_in, []
        try:
            if term:
                bus, into, group = self._bus, self._work_in, f"scheduler-{term}"
                into.append(await bus.hear(KvReady.SUBJECT, self._on_kv_ready, KvReady, queue=group))
                into.append(await bus.hear(SubmitRequest.SUBJECT, self._on_submit, SubmitRequest, queue=group))
        finally:
            await _drain(former)
        self._heart.changed()
        if not term:
            await self._performer.give_up_starts()
            self.feed(Deposed(now=time.monotonic()))

    def _on_submit(self, work: SubmitRequest) -> Accepted | Refused | None:
        if not self._campaign.leads():
            return None
        self._performer.keep(Parcel(work))
        self._traffic.arrived(work.request, work.attempt, len(work.prompt), time.time())
        effects = self.feed(
            Submitted(
                now=time.monotonic(),
                request=work.request,
                attempt=work.attempt,
                gateway=work.gateway,
                model=work.model,
                context_tokens=work.context_tokens,
                final_tokens=work.final_tokens,
                resumed=bool(work.generated),
                avoid=work.avoid[:MOST_AVOIDED],
                within_seconds=work.first_token_within,
            )
        )
        self._let_go_if_done(work)
        answer = next(effect for effect in effects if isinstance(effect, Accept | Refuse))
        if isinstance(answer, Accept):
            return Accepted(request=work.request, attempt=work.attempt)
        return Refused(
            request=work.request,
            attempt=work.attempt,
            reason=answer.reason,
            message=answer.message,
            retry_after_seconds=answer.retry_after_seconds,
        )

    def _on_kv_ready(self, message: KvReady) -> KvNoted | None:
        if not self._campaign.leads():
            return None
        work, kv = message.work, message.kv
        self._performer.keep(Parcel(work, kv))
        self.feed(
            KvComputed(
                now=time.monotonic(),
                request=work.request,
                attempt=work.attempt,
                gateway=work.gateway,
                model=work.model,
                context_tokens=work.context_tokens,
                final_tokens=work.final_tokens,
                source=kv.source,
                avoid=work.avoid[:MOST_AVOIDED],
            )
        )
        self._let_go_if_done(work)
        return KvNoted(request=work.request, attempt=work.attempt)

    def _on_kv_expired(self, message: KvExpired) -> None:
        now = time.monotonic()
        self.feed(KvLost(now=now, request=message.request, attempt=message.attempt, source=message.source))

    def _on_ended(self, message: RequestEnded) -> None:
        self._traffic.ended(message.request, message.prompt_tokens, message.output_tokens)
        self.feed(Ended(now=time.monotonic(), request=message.request, attempt=message.attempt))

    def _on_abort(self, message: AbortRequest) -> None:
        self.feed(Aborted(now=time.monotonic(), request=message.request, attempt=message.attempt))

    def _on_beat(self, beat: Beat) -> None:
        if beat.instance == self._instance:
            self._echo.heard(time.monotonic())
        self._campaign.heard(beat)
        if beat.role == "scheduler":
            return
        self.feed(
            BeatHeard(
                now=time.monotonic(),
                instance=beat.instance,
                role=beat.role,
                number=beat.number,
                model=beat.model,
                ready=beat.ready,
                draining=beat.draining,
                colocated=beat.colocated,
                kv_format=beat.kv_format,
                capacity=beat.capacity,
                load=beat.load,
                linked=tuple(link.peer for link in beat.links if link.ok),
                requests=tuple((RequestId(request), attempt) for request, attempt in beat.requests),
            )
        )

    def _let_go_if_done(self, work: SubmitRequest) -> None:
        """It was refused, overtaken, or said twice: nobody will have to be sent this."""
        live = self._dispatcher.board.live.get(work.request)
        if live is None or live.attempt != work.attempt or live.started:
            self._performer.let_go(work.request, work.attempt)

    def _hears(self) -> bool:
        """Whether the silence of others would mean anything."""
        return self._bus.connected and not self._echo.deaf(time.monotonic())

    # -- by the clock -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Not while the bus is down or hangs: nobody can be heard, and the dispatcher sees a pause for what it is."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._hears():
                was_settled = self._dispatcher.settled
                self.feed(Ticked(now=time.monotonic()))
                if self._dispatcher.settled and not was_settled:
                    self._heart.changed()
            self._metrics.leads.set(self._campaign.leads())
            self._metrics.queued.set(self._dispatcher.board.queue.requests)
            self._metrics.instances.clear()
            for (role, state), count in Counter((i.role, i.state) for i in self._dispatcher.board.fleet).items():
                self._metrics.instances.labels(role, state).set(count)

    def _describe(self, number: int) -> Beat:
        queue = self._dispatcher.board.queue
        load = Load(queued_requests=queue.requests, queued_tokens=queue.tokens)
        ready = self._dispatcher.settled
        term = self._campaign.term if self._campaign.leads() else 0
        return Beat(instance=self._instance, role="scheduler", number=number, ready=ready, load=load, term=term)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _hand_over(self, subscriptions: list[Subscription]) -> None:
        await _drain([*subscriptions, *self._work_in])
        await self._performer.give_up_starts()
        self.feed(Closing(now=time.monotonic()))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancelled until they end: a cancellation that comes while nats-py writes is swallowed by it."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_SECONDS)


async def _drain(subscriptions: list[Subscription]) -> None:
    async with asyncio.TaskGroup() as drains:
        for subscription in subscriptions:
            drains.create_task(subscription.drain())
