"""Messages of every kind get lost, doubled and late, clients leave, an instance dies: every stream is whole."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.bus.interface import Bus
from shared.bus.memory import MemoryBus
from shared.specs.sampling import Sampling
from shared.transport.ucx import UcxTransport
from tests.cluster import MODEL, Cluster, Connect, MakeTransport
from tests.faulty_bus import Deliveries, FaultyBus
from tests.live_gateway import LiveGateway, Stream, live_gateway

REQUESTS = 16
GREEDY = Sampling(max_tokens=1, temperature=0.0, stop_token_ids=(1,))
SAMPLED = replace(GREEDY, temperature=1.2, top_p=0.95)
SECONDS = 30.0  # by far enough for every stream to end
SETTLE_SECONDS = 12.0  # leases, and transfers that nobody ends


@dataclass
class Trouble:
    """What becomes of each message. Every kind has the same chances."""

    chance: random.Random

    def __call__(self, subject: str, message: object) -> Sequence[float]:
        fate = self.chance.random()
        if fate < 0.03:
            return ()
        if fate < 0.06:
            return (0.0, self.chance.uniform(0.0, 0.2))
        if fate < 0.12:
            return (self.chance.uniform(0.0, 0.3),)
        return (0.0,)


@dataclass(frozen=True)
class Call:
    prompt: list[int]
    sampling: Sampling
    begins_after: float
    leaves_after: int | None  # tokens


def calls(chance: random.Random) -> list[Call]:
    return [
        Call(
            prompt=[chance.randrange(6, 250) for _ in range(chance.randrange(1, 48))],
            sampling=replace(
                chance.choice((GREEDY, SAMPLED)), max_tokens=chance.randrange(1, 60), seed=chance.getrandbits(40)
            ),
            begins_after=chance.uniform(0.0, 1.0),
            leaves_after=chance.randrange(0, 30) if chance.random() < 0.25 else None,
        )
        for _ in range(REQUESTS)
    ]


async def run(call: Call, gateway: LiveGateway) -> Stream:
    await asyncio.sleep(call.begins_after)
    stream = gateway.begin(call.prompt, call.sampling)
    if call.leaves_after is not None:
        await stream.has(call.leaves_after)
        gateway.abort(stream)
    await stream.ended()
    return stream


@contextlib.asynccontextmanager
async def books_checked(cluster: Cluster) -> AsyncIterator[None]:
    """The ledgers of all pools hold at any moment, not only at the end."""

    async def check() -> None:
        while True:
            for member in cluster.members.values():
                member.ledger.check()
            await asyncio.sleep(0.02)

    checking = asyncio.create_task(check())
    try:
        yield
        assert not checking.done(), checking.exception()
    finally:
        checking.cancel()
        await asyncio.gather(checking, return_exceptions=True)


async def kill_one(cluster: Cluster, chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0.1, 1.5))
    role = chance.choice(("prefill", "decode"))
    await cluster.kill(chance.choice(cluster.of(role)))
    await cluster.start(role)


class Medium:
    """What carries the messages of a test; one that can be troubled."""

    def __init__(self, connect: Connect, hub: MemoryBus | None) -> None:
        self._connect, self._hub = connect, hub
        self._deliveries: Deliveries = untroubled
        self.buses: list[Bus] = []

    async def connect(self, name: str) -> Bus:
        bus = await self._connect(name)
        self.buses.append(bus if self._hub else FaultyBus(bus, lambda *message: self._deliveries(*message)))
        return self.buses[-1]

    def trouble(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        if self._hub is not None:
            self._hub.deliveries = deliveries


def untroubled(subject: str, message: object) -> Sequence[float]:
    return (0.0,)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_stream_is_whole_whatever_gets_lost(
    connect, make_transport, model: Path, alone, hub: MemoryBus, seed: int
):
    await serve_in_trouble(Medium(connect, hub), make_transport, model, alone, seed)


async def test_every_stream_is_whole_whatever_gets_lost_over_nats_and_ucx(connect_nats, model: Path, alone):
    await serve_in_trouble(Medium(connect_nats, None), lambda _: UcxTransport(), model, alone, seed=4)


async def serve_in_trouble(medium: Medium, make_transport: MakeTransport, model: Path, alone, seed: int) -> None:
    chance = random.Random(seed)
    wanted = calls(chance)
    async with (
        Cluster(medium.connect, make_transport, model, prefill=2, decode=2, blocks=72) as cluster,
        live_gateway(await medium.connect("live-gateway"), MODEL) as gateway,
        books_checked(cluster),
    ):
        medium.trouble(Trouble(chance))
        killing = asyncio.create_task(kill_one(cluster, chance))
        async with asyncio.timeout(SECONDS):
            streams = await asyncio.gather(*(run(call, gateway) for call in wanted))
            await killing
        medium.trouble(untroubled)
        await cluster.until(cluster.idle, SETTLE_SECONDS)
        await cluster.until(lambda: cluster.scheduler.idle, SETTLE_SECONDS)
        assert not [name for name, member in cluster.members.items() if member.task is None or member.task.done()]
    for call, stream in zip(wanted, streams, strict=True):
        assert stream.end is not None
        whole = alone(call.prompt, call.sampling)
        if call.leaves_after is None:
            assert stream.end.error is None, stream.end.error
            assert stream.tokens == whole
        else:
            assert stream.tokens == whole[: len(stream.tokens)]
    assert not [bus.troubles.counts for bus in medium.buses if bus.troubles.counts["bus_handler_failed"]]
