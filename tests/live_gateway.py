"""The real gateway without HTTP, inside a test: the service that owns requests, with a heart, on any bus."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.gateway.errors import unavailable
from services.gateway.events import End, GivenUp
from services.gateway.live import LiveRequest
from services.gateway.requests import Patience
from services.gateway.service import GatewayService
from shared.bus.heart import Heart
from shared.bus.interface import Bus
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import GatewayMetrics

MOST_REQUESTS = 1000
DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Stream:
    """What a client of it sees."""

    live: LiveRequest
    news: asyncio.Event

    @property
    def tokens(self) -> list[int]:
        return self.live.life.tokens

    @property
    def end(self) -> End | None:
        return self.live.life.end

    @property
    def attempts(self) -> int:
        return self.live.life.attempt + 1

    async def has(self, count: int) -> None:
        """Wait until it has `count` tokens or its end."""
        while len(self.tokens) < count and self.end is None:
            await self.news.wait()
            self.news.clear()

    async def ended(self) -> End:
        await self.has(1 << 30)
        assert self.end is not None
        return self.end


class LiveGateway:
    def __init__(self, service: GatewayService, model: str) -> None:
        self.service = service
        self._model = model
        self._names = (RequestId(f"{service.instance}-{number}") for number in itertools.count())

    def begin(self, prompt: list[int], sampling: Sampling) -> Stream:
        arrived_at = time.monotonic()
        news = asyncio.Event()
        live = self.service.begin(next(self._names), tuple(prompt), sampling, arrived_at, news)
        return Stream(live, news)

    def abort(self, stream: Stream) -> None:
        self.service.feed(stream.live, GivenUp(unavailable("the client is gone"), "aborted"))


@contextlib.asynccontextmanager
async def live_gateway(bus: Bus, model: str, name: str = "gateway-0be1a55e") -> AsyncIterator[LiveGateway]:
    instance = InstanceId(name)
    metrics = GatewayMetrics(instance, model)
    service = GatewayService(bus, metrics, instance, model, Patience(), DEADLINE_SECONDS, MOST_REQUESTS)
    await service.start()
    heart = Heart(bus, service.describe)
    tasks = [asyncio.create_task(heart.run()), asyncio.create_task(service.run())]
    try:
        yield LiveGateway(service, model)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.close()
