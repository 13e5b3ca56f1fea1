"""NATS goes away for a while and comes back: those who compute go on, and nobody is taken for dead."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.bus.interface import Bus
from shared.bus.nats import NatsBus
from shared.engine.step import Engine
from shared.specs.sampling import Sampling
from tests.cluster import MODEL, Cluster
from tests.live_gateway import live_gateway
from tests.nats_server import NatsServer

OUTAGE_SECONDS = 5.0  # longer than anybody's silence may last


async def killed_and_restarted(server: NatsServer) -> None:
    await server.restart(OUTAGE_SECONDS)


async def hanging(server: NatsServer) -> None:
    """Every connection stays open, and nothing comes through."""
    server.pause()
    await asyncio.sleep(OUTAGE_SECONDS)
    server.resume()


STREAMS = 4
SAMPLED = Sampling(max_tokens=150, temperature=1.1, stop_token_ids=(1,), min_tokens=150)


class SlowEngine(Engine):
    """The real engine, so slow that the answers last longer than the outage."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__

    def step(self, pieces):
        time.sleep(0.035)
        return super().step(pieces)


@pytest.mark.parametrize("outage", [killed_and_restarted, hanging])
async def test_running_streams_outlive_an_outage_of_the_bus(
    make_transport, model: Path, alone, tmp_path: Path, outage: Callable[[NatsServer], Awaitable[None]]
):
    server = NatsServer(tmp_path)
    server.start()
    async with AsyncExitStack() as connections:

        async def connect(name: str) -> Bus:
            return await connections.enter_async_context(await NatsBus.connect(server.url, name=name, role="test"))

        async with (
            Cluster(connect, make_transport, model, blocks=4 * 64, engine_of=SlowEngine) as cluster,
            live_gateway(await connect("live-gateway"), MODEL) as gateway,
        ):
            calls = [([7, 8, number], replace(SAMPLED, seed=number)) for number in range(STREAMS)]
            streams = [gateway.begin(*call) for call in calls]
            await asyncio.gather(*(stream.has(10) for stream in streams))
            await outage(server)
            await asyncio.gather(*(stream.ended() for stream in streams))
            await cluster.until(cluster.idle)
    server.stop()
    assert [stream.tokens for stream in streams] == [alone(*call) for call in calls]
    assert [stream.attempts for stream in streams] == [1] * STREAMS
