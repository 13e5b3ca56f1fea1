"""One decode instance on a bus: who listens to what, and how it starts and ends."""

import asyncio

import structlog

from services.decode.config import DecodeConfig
from services.decode.intake import Intake, IntakeLimits
from services.decode.links import Links
from services.decode.puller import Puller, PullLimits
from services.decode.worker import BatchLimits, DecodeWorker
from shared.bus.heart import Heart
from shared.bus.interface import Bus
from shared.engine.step import Engine
from shared.engine.thread import EngineThread
from shared.kv.ledger import Ledger
from shared.messages.instances import Beat, Capacity, Load
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.work import StartDecode, Started
from shared.policy.terms import Terms
from shared.specs.ids import InstanceId, role_of
from shared.telemetry.metrics import DecodeMetrics
from shared.transport.interface import Transport
from shared.worker.breakdown import Breakdown
from shared.worker.lifecycle import missing, stop_with
from shared.worker.neighbours import Neighbours
from shared.worker.teller import Teller

log = structlog.get_logger()


class DecodeService:
    def __init__(
        self,
        config: DecodeConfig,
        instance: InstanceId,
        bus: Bus,
        transport: Transport,
        engine: Engine,
        metrics: DecodeMetrics,
    ) -> None:
        self._config, self._instance, self._bus, self._transport = config, instance, bus, transport
        self._engine = engine
        self._thread = EngineThread(engine, config.instance.step_seconds)
        self._breakdown = Breakdown()
        self.ledger = Ledger(engine.blocks)
        self._teller = Teller(bus, instance)
        self._links = Links(bus, transport, engine.cache, instance, engine.kv_format)
        batch = BatchLimits(order=config.order, prefill_tokens=config.prefill_tokens, block_tokens=engine.block_tokens)
        self._worker = DecodeWorker(self._thread, self.ledger, self._teller, metrics, batch, self._breakdown)
        pull = PullLimits(
            at_once=config.pulls_at_once,
            seconds=config.instance.transfer_seconds,
            message_bytes=config.pull_message_bytes,
            checksum=config.checksum,
        )
        self._puller = Puller(bus, transport, engine.cache, self._links, metrics, instance, pull)
        limits = IntakeLimits(
            queue_requests=config.queue_requests,
            max_batch=config.max_batch,
            block_tokens=engine.block_tokens,
            max_model_tokens=engine.max_model_tokens,
            vocabulary=engine.spec.vocab_size,
            colocated=config.colocated,
        )
        self._intake = Intake(self.ledger, self._worker, self._puller, self._teller, metrics, limits)
        metrics.watch_links(self._links.reports)
        self._heart = Heart(bus, self._describe)
        self._neighbours = Neighbours(instance, self._heart.changed, self._on_lost, self._on_beat)
        self._terms = Terms()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or the bus is closed for good, then let what is here finish or hand it back.

        InstanceBroken, once everything is handed back, if the engine is of no use any more.
        """
        try:
            await self._listen()
            async with asyncio.TaskGroup() as tasks:
                loops = (
                    self._worker.run(),
                    self._intake.run(),
                    self._intake.watch_room(),
                    self._puller.renew(lambda: self._intake.queued),
                    self._neighbours.run(),
                    self._beat_on_link_changes(),
                )
                running = [tasks.create_task(loop) for loop in loops]
                running.append(tasks.create_task(self._heart.run()))
                running.append(tasks.create_task(stop_with(self._bus, stop)))
                running.append(tasks.create_task(self._hand_back_when_broken(stop)))
                await stop.wait()
                await self._drain()
                for task in running:
                    task.cancel()
        finally:
            await self._intake.close()
            await self._links.close()
            await self._thread.close()
        self._breakdown.raise_if_broken()

    def works(self) -> list[SubmitRequest]:
        """Every request this instance answers for."""
        return self._intake.works()

    def missing(self) -> list[str]:
        """What keeps this instance from taking work; empty if nothing does."""
        return missing(self._bus, draining=self._intake.draining, broken=self._breakdown.reason)

    async def _listen(self) -> None:
        await self._teller.listen()
        await self._neighbours.listen(self._bus)
        await self._bus.subscribe(StartDecode.SUBJECT.format(instance=self._instance), self._start, StartDecode)
        await self._bus.subscribe(AbortRequest.SUBJECT, self._intake.abort, AbortRequest)

    async def _start(self, message: StartDecode) -> Started | Refused:
        if not self._terms.admits(message.term):
            return Refused.of(message.work, "deposed", f"a scheduler leads in term {self._terms.latest}")
        self._neighbours.expect(message.work.gateway)
        return await self._intake.start(message)

    async def _on_beat(self, beat: Beat) -> None:
        self._terms.heard(beat)
        await self._links.heard(beat)

    async def _on_lost(self, neighbour: InstanceId) -> None:
        if role_of(neighbour) == "gateway":
            await self._intake.abort_requests_of(neighbour)
        elif role_of(neighbour) == "prefill":
            await self._links.lost(neighbour)
            await self._intake.give_back_from(neighbour)

    async def _beat_on_link_changes(self) -> None:
        while True:
            await self._links.changed()
            self._heart.changed()

    async def _hand_back_when_broken(self, stop: asyncio.Event) -> None:
        """Out of service first, so that nothing comes back here; then its end, for somebody to start it afresh."""
        await self._breakdown.happened()
        self._intake.draining = True
        self._heart.changed()
        await self._intake.give_back_all(self._breakdown.reason)
        stop.set()

    async def _drain(self) -> None:
        self._intake.draining = True
        self._heart.changed()
        log.info("draining", requests=len(self.works()))
        try:
            async with asyncio.timeout(self._config.instance.drain_seconds):
                await self._teller.settled()
        except TimeoutError:
            await self._intake.give_back_all(f"{self._instance} is shutting down")

    def _describe(self, number: int) -> Beat:
        worker, intake, engine, broken = self._worker, self._intake, self._engine, self._breakdown.reason
        return Beat(
            instance=self._instance,
            role="decode",
            number=number,
            model=self._config.instance.served_model,
            ready=not broken,
            detail=broken,
            draining=intake.draining,
            colocated=self._config.colocated,
            kv_format=engine.kv_format,
            capacity=Capacity(
                max_model_tokens=engine.max_model_tokens,
                block_tokens=engine.block_tokens,
                blocks=engine.blocks,
                max_batch=self._config.max_batch,
                max_queue_requests=self._config.queue_requests,
            ),
            load=Load(
                queued_requests=len(intake.queued),
                queued_tokens=sum(arrival.work.context_tokens for arrival in intake.queued),
                running=len(worker.members),
                free_blocks=self.ledger.free,
                blocks_by_state=self.ledger.counts(),
            ),
            links=self._links.reports(),
            address=self._transport.address,
            requests=tuple((work.request, work.attempt) for work in self.works()),
            term=self._terms.latest,
        )
