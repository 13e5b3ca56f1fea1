"""One prefill instance on a bus: who listens to what, and how it starts and ends."""

import asyncio

import structlog

from services.prefill.config import PrefillConfig
from services.prefill.handoff import Handoff
from services.prefill.worker import PrefillLimits, PrefillWorker
from shared.bus.heart import Heart
from shared.bus.interface import Bus
from shared.engine.step import Engine
from shared.engine.thread import EngineThread
from shared.kv.ledger import Ledger, State
from shared.messages.handoff import KvReleased, KvRenewed, LinkTest, LinkTestAnswer, PullBlocks
from shared.messages.instances import Beat, Capacity, Load
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.work import Started, StartPrefill
from shared.policy.terms import Terms
from shared.specs.ids import InstanceId, role_of
from shared.telemetry.metrics import PrefillMetrics
from shared.transport.interface import Transport
from shared.transport.selftest import answer_link_test
from shared.worker.breakdown import Breakdown
from shared.worker.lifecycle import missing, stop_with
from shared.worker.neighbours import Neighbours
from shared.worker.teller import Teller

log = structlog.get_logger()


class PrefillService:
    def __init__(
        self,
        config: PrefillConfig,
        instance: InstanceId,
        bus: Bus,
        transport: Transport,
        engine: Engine,
        metrics: PrefillMetrics,
    ) -> None:
        self._config, self._instance, self._bus, self._transport = config, instance, bus, transport
        self._engine = engine
        self._thread = EngineThread(engine, config.instance.step_seconds)
        self._breakdown = Breakdown()
        self.ledger = Ledger(engine.blocks)
        self._teller = Teller(bus, instance)
        self._handoff = Handoff(
            bus,
            transport,
            self.ledger,
            engine.cache,
            self._teller,
            metrics,
            instance,
            lease_seconds=config.lease_seconds,
            transfer_seconds=config.instance.transfer_seconds,
            on_freed=lambda: self._worker.blocks_freed(),
        )
        limits = PrefillLimits(
            batch_tokens=config.batch_tokens,
            queue_tokens=config.queue_tokens,
            queue_requests=config.queue_requests,
            block_tokens=engine.block_tokens,
            max_model_tokens=engine.max_model_tokens,
            vocabulary=engine.spec.vocab_size,
        )
        self._worker = PrefillWorker(
            self._thread, self.ledger, self._teller, self._handoff, metrics, limits, self._breakdown
        )
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
                loops = (self._worker.run(), self._handoff.sweep(), self._neighbours.run())
                running = [tasks.create_task(loop) for loop in loops]
                running.append(tasks.create_task(self._heart.run()))
                running.append(tasks.create_task(stop_with(self._bus, stop)))
                running.append(tasks.create_task(self._hand_back_when_broken(stop)))
                await stop.wait()
                await self._drain()
                for task in running:
                    task.cancel()
        finally:
            await self._handoff.close()
            await self._thread.close()
        self._breakdown.raise_if_broken()

    def works(self) -> list[SubmitRequest]:
        """Every request this instance answers for."""
        return self._worker.works()

    def missing(self) -> list[str]:
        """What keeps this instance from taking work; empty if nothing does."""
        return missing(self._bus, draining=self._worker.draining, broken=self._breakdown.reason)

    async def _listen(self) -> None:
        bus, me = self._bus, self._instance
        await self._teller.listen()
        await self._neighbours.listen(bus)
        await bus.hear(StartPrefill.SUBJECT.format(instance=me), self._start, StartPrefill)
        await bus.subscribe(AbortRequest.SUBJECT, self._worker.abort, AbortRequest)
        await bus.subscribe(PullBlocks.SUBJECT.format(instance=me), self._handoff.pull, PullBlocks)
        await bus.subscribe(KvReleased.SUBJECT.format(instance=me), self._handoff.released, KvReleased)
        await bus.subscribe(KvRenewed.SUBJECT.format(instance=me), self._handoff.renewed, KvRenewed)
        await bus.subscribe(LinkTest.SUBJECT.format(instance=me), self._link_test, LinkTest)

    def _start(self, message: StartPrefill) -> Started | Refused:
        if not self._terms.admits(message.term):
            return Refused.of(message.work, "deposed", f"a scheduler leads in term {self._terms.latest}")
        self._neighbours.expect(message.work.gateway)
        return self._worker.start(message)

    async def _link_test(self, message: LinkTest) -> LinkTestAnswer:
        return await answer_link_test(self._transport, message, self._engine.cache.scratch)

    async def _on_beat(self, beat: Beat) -> None:
        if self._terms.heard(beat):
            self._handoff.scheduler_changed()

    async def _on_lost(self, neighbour: InstanceId) -> None:
        if role_of(neighbour) == "gateway":
            await self._worker.abort_requests_of(neighbour)
        elif role_of(neighbour) == "decode":
            await self._transport.forget(neighbour)

    async def _hand_back_when_broken(self, stop: asyncio.Event) -> None:
        """Out of service first, so that nothing comes back here; then its end, for somebody to start it afresh."""
        await self._breakdown.happened()
        self._worker.draining = True
        self._heart.changed()
        await self._worker.give_back_all(self._breakdown.reason)
        stop.set()

    async def _drain(self) -> None:
        self._worker.draining = True
        self._heart.changed()
        log.info("draining", requests=len(self.works()))
        try:
            async with asyncio.timeout(self._config.instance.drain_seconds):
                await self._teller.settled()
        except TimeoutError:
            await self._worker.give_back_all(f"{self._instance} is shutting down")

    def _describe(self, number: int) -> Beat:
        worker, engine, broken = self._worker, self._engine, self._breakdown.reason
        return Beat(
            instance=self._instance,
            role="prefill",
            number=number,
            model=self._config.instance.served_model,
            ready=not broken,
            detail=broken,
            draining=worker.draining,
            kv_format=engine.kv_format,
            capacity=Capacity(
                max_model_tokens=engine.max_model_tokens,
                block_tokens=engine.block_tokens,
                blocks=engine.blocks,
                batch_tokens=self._config.batch_tokens,
                max_queue_tokens=self._config.queue_tokens,
                max_queue_requests=self._config.queue_requests,
            ),
            load=Load(
                queued_requests=worker.queued_requests,
                queued_tokens=worker.queued_tokens,
                free_blocks=self.ledger.free,
                held_blocks=self.ledger.count(State.HELD) + self.ledger.count(State.PULLING),
                blocks_by_state=self.ledger.counts(),
            ),
            address=self._transport.address,
            requests=tuple((work.request, work.attempt) for work in self.works()),
            term=self._terms.latest,
        )
