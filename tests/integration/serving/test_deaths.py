"""An instance dies at the worst moments of a request's way, or goes away in order: the stream is whole all the same."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.bus.interface import Bus
from shared.bus.memory import MemoryBus
from shared.engine.step import Engine
from shared.messages.handoff import KvReady, PullBlocks, Sending
from shared.messages.tokens import Sealed
from shared.messages.work import StartDecode, Started, StartPrefill
from shared.specs.ids import InstanceId, Role
from shared.specs.sampling import Sampling
from shared.transport.loopback import LoopbackHub, LoopbackTransport
from tests.cluster import MODEL, Cluster
from tests.live_gateway import live_gateway

PROMPT = list(range(10, 40))
LONG = Sampling(max_tokens=60, temperature=1.1, seed=7)


@dataclass(frozen=True)
class Moment:
    """The instance of `role` dies as soon as a message of this kind is seen that goes to it or comes from it."""

    role: Role
    kind: type
    number: int = 1  # the how manyth


MOMENTS = [
    Moment("prefill", StartPrefill),  # before it has it
    Moment("prefill", Started),  # it has it in its queue, or computes it
    Moment("prefill", KvReady),  # it holds the KV, and nobody knows
    Moment("prefill", PullBlocks),
    Moment("prefill", Sending),  # in the middle of the transfer
    Moment("decode", StartDecode),
    Moment("decode", PullBlocks),  # its receives are posted
    Moment("decode", Sending),
    Moment("decode", Sealed, 6),
]


async def dies_at(moment: Moment, model: Path) -> list[int]:
    """The tokens of a request during which it happens, on a cluster of its own."""
    hub, wires = MemoryBus(), LoopbackHub()
    now = asyncio.Event()
    seen: list[str] = []

    def watch(subject: str, message: object) -> Sequence[float]:
        if isinstance(message, moment.kind) and (moment.kind is not Started or ".prefill." in subject):
            seen.append(subject)
            if len(seen) == moment.number:
                now.set()
        return (0.0,)

    async with AsyncExitStack() as connections:

        async def connect(name: str) -> Bus:
            return await connections.enter_async_context(hub.connect(name))

        async with (
            Cluster(connect, lambda name: LoopbackTransport(wires, name), model, prefill=2, decode=2) as cluster,
            live_gateway(await connect("live-gateway"), MODEL) as gateway,
        ):
            hub.deliveries = watch
            stream = gateway.begin(PROMPT, LONG)
            await asyncio.wait_for(now.wait(), 10)
            victim = next(
                i for i in cluster.of(moment.role) if i in seen[moment.number - 1] or holds_something(cluster, i)
            )
            wires.lose(victim)
            await cluster.kill(victim)
            await stream.ended()
            await cluster.until(cluster.idle)
            return stream.tokens


def holds_something(cluster: Cluster, instance: InstanceId) -> bool:
    member = cluster.members[instance]
    return member.ledger.free < member.ledger.blocks or bool(member.service.works())


async def test_a_death_at_any_moment_costs_no_token(model: Path, alone):
    """Side by side, as each takes as long as it takes to be missed."""
    streams = await asyncio.gather(*(dies_at(moment, model) for moment in MOMENTS))
    whole = alone(PROMPT, LONG)
    assert [moment for moment, tokens in zip(MOMENTS, streams, strict=True) if tokens != whole] == []


class SlowEngine(Engine):
    """The real engine, so slow that no answer is over before its instance has to be gone."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__

    def step(self, pieces):
        time.sleep(0.02)
        return super().step(pieces)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_what_cannot_end_before_its_instance_has_to_go_is_handed_over(
    connect, make_transport, model: Path, alone, role: Role
):
    """Of prefill: the KV that waits for its turn at a decode instance."""
    settings = {"DISTSERVE_DRAIN_TIMEOUT": "0.1", "DISTSERVE_MAX_BATCH": "1"}
    calls = [([*PROMPT, number], Sampling(max_tokens=40, temperature=1.1, seed=number)) for number in range(4)]
    async with (
        Cluster(
            connect, make_transport, model, prefill=2, decode=2, blocks=256, settings=settings, engine_of=SlowEngine
        ) as cluster,
        live_gateway(await connect("live-gateway"), MODEL) as gateway,
    ):
        streams = [gateway.begin(*call) for call in calls]
        await cluster.until(lambda: any(len(stream.tokens) >= 2 for stream in streams))
        await cluster.until(lambda: any(holds_something(cluster, i) for i in cluster.of(role)))
        leaving = cluster.members.pop(next(i for i in cluster.of(role) if holds_something(cluster, i)))
        leaving.stop.set()
        assert leaving.task is not None
        await asyncio.wait_for(leaving.task, 10)
        await asyncio.gather(*(stream.ended() for stream in streams))
        await cluster.until(cluster.idle)
        await leaving.bus.close()
        await leaving.transport.close()
    assert [stream.tokens for stream in streams] == [alone(*call) for call in calls]
    assert any(stream.attempts > 1 for stream in streams)
