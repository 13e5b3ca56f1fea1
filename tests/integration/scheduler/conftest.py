import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from services.scheduler.campaign import LEASE_SECONDS
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.limits import Limits
from services.scheduler.service import SchedulerService
from shared.bus import Bus
from shared.bus.memory import MemoryBus
from shared.bus.nats import NatsBus
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId
from shared.telemetry.metrics import SchedulerMetrics
from tests.integration.scheduler.scripted import Cast, Connect
from tests.nats_server import nats_server
from tests.recorded_spans import recorded_spans

__all__ = ["nats_server", "recorded_spans"]

LIMITS = Limits(settle_seconds=0.0, instance_lost_seconds=0.5, asleep_seconds=0.45, renew_seconds=0.25)


@dataclass
class Running:
    """A scheduler that serves."""

    service: SchedulerService
    dispatcher: Dispatcher
    metrics: SchedulerMetrics
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    async def knows(self, condition: Callable[[Dispatcher], bool]) -> None:
        """Wait until `condition` holds of its dispatcher."""
        async with asyncio.timeout(5):
            while not condition(self.dispatcher):  # noqa: ASYNC110  whatever comes over the bus may change it
                await asyncio.sleep(0.005)

    async def crash(self) -> None:
        """It decides nothing any more, while its connection still takes messages in."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            await asyncio.wait_for(self.task, 5)


StartScheduler = Callable[..., Awaitable[Running]]


@pytest.fixture(params=["memory", "nats"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as connections:
        if request.param == "memory":
            hub = MemoryBus()

            async def open_connection(name: str) -> Bus:
                return await connections.enter_async_context(hub.connect(name))
        else:
            url = request.getfixturevalue("nats_server").url

            async def open_connection(name: str) -> Bus:
                return await connections.enter_async_context(await NatsBus.connect(url, name=name, role="gateway"))

        yield open_connection


@pytest.fixture
async def cast(connect: Connect) -> AsyncIterator[Cast]:
    everybody = Cast(connect)
    yield everybody
    for part in everybody.parts:
        part.die()


@pytest.fixture
async def start_scheduler(connect: Connect) -> AsyncIterator[StartScheduler]:
    """`await start_scheduler()` gives one that listens."""
    running: list[Running] = []

    async def start(
        limits: Limits = LIMITS,
        name: str = "scheduler-1",
        lease_seconds: float = LEASE_SECONDS,
        stands_by: bool = False,
    ) -> Running:
        dispatcher = Dispatcher(limits)
        metrics = SchedulerMetrics(InstanceId(name), "tiny")
        service = SchedulerService(
            await connect(name),
            InstanceId(name),
            dispatcher,
            None,
            metrics,
            start_seconds=0.3,
            lease_seconds=lease_seconds,
        )
        one = Running(service, dispatcher, metrics)
        first_beat: asyncio.Queue[Beat] = asyncio.Queue()
        observer = await connect("observer")
        await observer.subscribe(Beat.SUBJECT.format(role="scheduler", instance=name), first_beat.put, Beat)
        one.task = asyncio.create_task(service.run(one.stop))
        running.append(one)
        async with asyncio.timeout(5):
            while not ((await first_beat.get()).term or stands_by):  # who leads has ears
                pass
        return one

    yield start
    for one in running:
        await one.end()
