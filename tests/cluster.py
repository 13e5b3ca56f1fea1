"""All services but the gateway in one process, each with its own connection, transport and engine. For tests."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from services.decode.config import DecodeConfig
from services.decode.service import DecodeService
from services.prefill.config import PrefillConfig
from services.prefill.service import PrefillService
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.limits import Limits
from services.scheduler.service import SchedulerService
from shared.bus.interface import Bus
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.kv.ledger import Ledger
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId, Role, new_instance_id
from shared.telemetry.metrics import DecodeMetrics, PrefillMetrics, SchedulerMetrics, ServiceMetrics
from shared.transport.interface import Transport
from tests.scripted_gateway import ScriptedGateway

MODEL = "test-model"
Connect = Callable[[str], Awaitable[Bus]]
MakeTransport = Callable[[InstanceId], Transport]

SETTINGS = {
    "DISTSERVE_MODEL": "set below",
    "DISTSERVE_SERVED_MODEL_NAME": MODEL,
    "DISTSERVE_KV_CHECKSUM": "1",
    "DISTSERVE_DRAIN_TIMEOUT": "5",
    "DISTSERVE_TRANSFER_TIMEOUT": "1",
    "DISTSERVE_LEASE_SECONDS": "3",
}


@dataclass
class Member:
    service: PrefillService | DecodeService
    metrics: ServiceMetrics
    bus: Bus
    transport: Transport
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def ledger(self) -> Ledger:
        return self.service.ledger


class Cluster:
    def __init__(
        self,
        connect: Connect,
        make_transport: MakeTransport,
        model: Path,
        *,
        prefill: int = 1,
        decode: int = 1,
        blocks: int = 64,
        settings: dict[str, str] | None = None,
        engine_of: Callable[[Engine], Engine] = lambda engine: engine,
    ) -> None:
        self._connect, self._make_transport, self._engine_of = connect, make_transport, engine_of
        self._settings = SETTINGS | {"DISTSERVE_MODEL": str(model)} | (settings or {})
        self._engine = EngineSettings(model=str(model), blocks=blocks, block_tokens=4, threads=1)
        self._wanted: dict[Role, int] = {"prefill": prefill, "decode": decode}
        self.members: dict[InstanceId, Member] = {}
        self.beats: dict[InstanceId, Beat] = {}
        self._stop = asyncio.Event()
        self._scheduler: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        bus = await self._connect("observer")
        await bus.subscribe(Beat.SUBJECT.format(role="*", instance="*"), self._on_beat, Beat)
        await self._start_scheduler()
        self.gateway = ScriptedGateway(await self._connect("gateway"))
        await self.gateway.start()
        for role, count in self._wanted.items():
            for _ in range(count):
                await self.start(role)
        await self.until(lambda: self._linked() and self._dispatcher.settled)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.close()
        for member in list(self.members.values()):
            member.stop.set()
            if member.task is not None:
                await member.task
            await member.bus.close()
            await member.transport.close()
        self._stop.set()
        if self._scheduler is not None:
            await self._scheduler

    def of(self, role: Role) -> list[InstanceId]:
        return [instance for instance in self.members if instance.startswith(role)]

    async def start(self, role: Role) -> InstanceId:
        instance = new_instance_id(role)
        engine = self._engine_of(await asyncio.to_thread(Engine.load, self._engine))
        bus, transport = await self._connect(instance), self._make_transport(instance)
        if role == "prefill":
            metrics = PrefillMetrics(instance, MODEL)
            service = PrefillService(PrefillConfig.from_env(self._settings), instance, bus, transport, engine, metrics)
        else:
            metrics = DecodeMetrics(instance, MODEL)
            service = DecodeService(DecodeConfig.from_env(self._settings), instance, bus, transport, engine, metrics)
        member = Member(service, metrics, bus, transport)
        member.task = asyncio.create_task(service.run(member.stop))
        self.members[instance] = member
        return instance

    async def kill(self, instance: InstanceId) -> None:
        """It falls silent from one moment to the next, as if its process had been killed."""
        member = self.members.pop(instance)
        assert member.task is not None
        member.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await member.task
        await member.bus.close()
        await member.transport.close()

    async def until(self, fact: Callable[[], bool], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not fact():  # noqa: ASYNC110  (the facts are of many parts)
                await asyncio.sleep(0.01)

    def idle(self) -> bool:
        """Every block of every pool is free again, and nobody answers for a request."""
        return all(
            member.ledger.free == member.ledger.blocks and not member.service.works()
            for member in self.members.values()
        )

    async def crash_scheduler(self) -> None:
        """Another one takes its place, and knows nothing."""
        assert self._scheduler is not None
        self._scheduler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._scheduler
        await self._scheduler_bus.close()
        await self._start_scheduler()

    async def _start_scheduler(self) -> None:
        instance = new_instance_id("scheduler")
        self._scheduler_bus = bus = await self._connect("scheduler")
        limits = replace(Limits(), settle_seconds=0.1)
        self._dispatcher = Dispatcher(limits)
        self.scheduler_metrics = SchedulerMetrics(instance, MODEL)
        self.scheduler = SchedulerService(
            bus, instance, self._dispatcher, None, self.scheduler_metrics, lease_seconds=0.5
        )
        self._scheduler = asyncio.create_task(self.scheduler.run(self._stop))

    async def _on_beat(self, beat: Beat) -> None:
        self.beats[beat.instance] = beat

    def _linked(self) -> bool:
        sources = set(self.of("prefill"))
        return set(self.members) <= set(self.beats) and all(
            sources <= {link.peer for link in self.beats[decode].links if link.ok} for decode in self.of("decode")
        )
