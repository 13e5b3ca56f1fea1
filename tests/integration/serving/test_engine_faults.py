"""What an engine may do to its instance: fail once or for ever, use up the memory, hang. Its requests go on."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from shared.bus.interface import Bus
from shared.engine.step import Engine
from shared.specs.ids import Role
from shared.specs.sampling import Sampling
from shared.worker.breakdown import InstanceBroken
from tests.cluster import MODEL, Cluster
from tests.live_gateway import Stream, live_gateway

CALLS = [([*range(10, 40), number], Sampling(max_tokens=40, temperature=1.1, seed=number)) for number in range(8)]
TWO_OF_EACH = {"prefill": 2, "decode": 2, "blocks": 256}  # nobody is preempted
MORE_BYTES_THAN_THERE_ARE = 1 << 50


class Troubled(Engine):
    """The real engine, each step of which begins with `trouble(its number)`."""

    def __init__(self, engine: Engine, trouble: Callable[[int], object]) -> None:
        self.__dict__ = engine.__dict__
        self._trouble, self._steps = trouble, 0

    def step(self, pieces):
        self._steps += 1
        self._trouble(self._steps)
        return super().step(pieces)


def first_of(role: Role, trouble: Callable[[int], object]) -> Callable[[Engine], Engine]:
    """For `engine_of` of a cluster with two prefill instances, which it starts before the others."""
    made: list[Engine] = []

    def wrap(engine: Engine) -> Engine:
        made.append(engine)
        return Troubled(engine, trouble) if len(made) == (1 if role == "prefill" else 3) else engine

    return wrap


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Whoever hangs in a test goes on at its end."""
    gate = threading.Event()
    yield gate
    gate.set()


async def served(cluster: Cluster, bus: Bus) -> list[Stream]:
    async with live_gateway(bus, MODEL) as gateway, asyncio.timeout(30):
        streams = [gateway.begin(*call) for call in CALLS]
        for stream in streams:
            await stream.ended()
        return streams


async def reason_of_the_broken_one(cluster: Cluster, role: Role) -> str:
    """It has ended by itself, after a beat that says that and why it takes nothing any more. It leaves the cluster."""
    first = cluster.of(role)[0]
    member = cluster.members.pop(first)
    assert member.task is not None
    with pytest.raises(InstanceBroken) as broken:
        await asyncio.wait_for(member.task, 10)
    assert (cluster.beats[first].ready, cluster.beats[first].detail) == (False, str(broken.value))
    await member.bus.close()
    await member.transport.close()
    return str(broken.value)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_step_that_hangs_ends_its_instance_and_the_requests_go_on_elsewhere(
    connect, make_transport, model: Path, alone, gate: threading.Event, role: Role
):
    engine_of = first_of(role, lambda step: gate.wait(30) if step == 2 else None)
    settings = {"DISTSERVE_STEP_TIMEOUT": "0.5", "DISTSERVE_PREFILL_BATCH_TOKENS": "1"}
    async with Cluster(
        connect, make_transport, model, settings=settings, engine_of=engine_of, **TWO_OF_EACH
    ) as cluster:
        streams = await served(cluster, await connect("live-gateway"))
        assert "did not end within 0.5 s" in await reason_of_the_broken_one(cluster, role)
        await cluster.until(cluster.idle)
    assert [stream.tokens for stream in streams] == [alone(*call) for call in CALLS]
    assert max(stream.attempts for stream in streams) == 2


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_an_engine_that_fails_again_and_again_takes_its_instance_out(
    connect, make_transport, model: Path, alone, role: Role
):
    def fail(step: int) -> None:
        raise RuntimeError("the device is lost, says the test")

    settings = {"DISTSERVE_PREFILL_BATCH_TOKENS": "1", "DISTSERVE_MAX_BATCH": "1"}
    async with Cluster(
        connect, make_transport, model, settings=settings, engine_of=first_of(role, fail), **TWO_OF_EACH
    ) as cluster:
        streams = await served(cluster, await connect("live-gateway"))
        assert "the device is lost" in await reason_of_the_broken_one(cluster, role)
        await cluster.until(cluster.idle)
    assert [stream.tokens for stream in streams] == [alone(*call) for call in CALLS]


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_request_that_failed_at_one_instance_is_tried_at_the_other(
    connect, make_transport, model: Path, alone, role: Role
):
    """It is alone: the broken instance is as free as the whole one each time."""

    def fail(step: int) -> None:
        raise RuntimeError("the device is lost, says the test")

    async with Cluster(
        connect, make_transport, model, settings=None, engine_of=first_of(role, fail), **TWO_OF_EACH
    ) as cluster:
        async with live_gateway(await connect("live-gateway"), MODEL) as gateway, asyncio.timeout(30):
            for call in CALLS[:2]:
                stream = gateway.begin(*call)
                await stream.ended()
                assert stream.tokens == alone(*call)
                assert stream.attempts <= 2
        await cluster.until(cluster.idle)
        assert all(beat.ready for beat in cluster.beats.values()), "two failures are not enough to give it up"


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_running_out_of_memory_in_one_step_costs_its_batch_another_attempt(
    connect, make_transport, model: Path, alone, role: Role
):
    def exhaust(step: int) -> None:
        if step == 2:
            torch.empty(MORE_BYTES_THAN_THERE_ARE, dtype=torch.uint8)

    settings = {"DISTSERVE_PREFILL_BATCH_TOKENS": "1"}
    async with Cluster(
        connect, make_transport, model, settings=settings, engine_of=first_of(role, exhaust), **TWO_OF_EACH
    ) as cluster:
        streams = await served(cluster, await connect("live-gateway"))
        await cluster.until(cluster.idle)
        assert all(beat.ready for beat in cluster.beats.values())
    assert [stream.tokens for stream in streams] == [alone(*call) for call in CALLS]
    assert {stream.attempts for stream in streams} == {1, 2}
