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
from shared.specs.ids import InstanceId, role_of
from shared.telemetry.metrics import DecodeMetrics
from shared.transport.interface import Transport
from shared.worker.lifecycle import missing, stop_with
from shared.worker.neighbours import Neighbours
from shared.worker.teller import Teller

log = structlog.get_logger()

MOST_FAILURES = 3  # failed steps in a row, of different requests, after which this instance takes itself out
RENEWALS_PER_LEASE = 3


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
        self._thread = EngineThread(engine)
        self.ledger = Ledger(engine.blocks)
        self._teller = Teller(bus, instance)
        self._links = Links(bus, transport, engine.cache, instance, engine.kv_format)
        batch = BatchLimits(order=config.order, prefill_tokens=config.prefill_tokens, block_tokens=engine.block_tokens)
        self._worker = DecodeWorker(self._thread, self.ledger, self._teller, metrics, batch)
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
            colocated=config.colocated,
        )
        self._intake = Intake(self.ledger, self._worker, self._puller, self._teller, metrics, limits)
        metrics.watch_links(self._links.reports)
        self._heart = Heart(bus, self._describe)
        self._neighbours = Neighbours(instance, self._heart.changed, self._on_lost, self._links.heard)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set or the bus is closed for good, then let what is here finish or hand it back."""
        renew_seconds = self._config.lease_seconds / RENEWALS_PER_LEASE
        try:
            await self._listen()
            async with asyncio.TaskGroup() as tasks:
                loops = (
                    self._worker.run(),
                    self._intake.run(),
                    self._intake.watch_room(),
                    self._puller.renew(lambda: self._intake.queued, renew_seconds),
                    self._neighbours.run(),
                    self._beat_on_link_changes(),
                )
                running = [tasks.create_task(loop) for loop in loops]
                running.append(tasks.create_task(self._heart.run()))
                running.append(tasks.create_task(stop_with(self._bus, stop)))
                await stop.wait()
                await self._drain()
                for task in running:
                    task.cancel()
        finally:
            await self._intake.close()
            await self._links.close()
            await self._thread.close()

    def works(self) -> list[SubmitRequest]:
        """Every request this instance answers for."""
        return self._intake.works()

    def missing(self) -> list[str]:
        """What keeps this instance from taking work; empty if nothing does."""
        return missing(self._bus, draining=self._intake.draining, broken=self._broken())

    def _broken(self) -> str:
        failures = self._worker.failures.in_a_row
        return f"{failures} steps in a row failed" if failures >= MOST_FAILURES else ""

    async def _listen(self) -> None:
        await self._teller.listen()
        await self._neighbours.listen(self._bus)
        await self._bus.subscribe(StartDecode.SUBJECT.format(instance=self._instance), self._start, StartDecode)
        await self._bus.subscribe(AbortRequest.SUBJECT, self._intake.abort, AbortRequest)

    async def _start(self, message: StartDecode) -> Started | Refused:
        self._neighbours.expect(message.work.gateway)
        return await self._intake.start(message)

    async def _on_lost(self, neighbour: InstanceId) -> None:
        if role_of(neighbour) == "gateway":
            await self._intake.abort_requests_of(neighbour)
        elif role_of(neighbour) == "prefill":
            await self._links.lost(neighbour)

    async def _beat_on_link_changes(self) -> None:
        while True:
            await self._links.changed()
            self._heart.changed()

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
        worker, intake, engine, broken = self._worker, self._intake, self._engine, self._broken()
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
            ),
            links=self._links.reports(),
            address=self._transport.address,
            requests=tuple((work.request, work.attempt) for work in self.works()),
        )
