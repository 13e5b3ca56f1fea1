"""Two gateways share the instances: each hears of its own requests only, and one of them may die."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from shared.bus.interface import Bus
from shared.engine.step import Engine
from shared.messages.sealed import unseal
from shared.messages.tokens import RequestInterrupted, Sealed, TokenBatch
from shared.specs.sampling import Sampling
from shared.worker.neighbours import LOST_SECONDS, SWEEP_SECONDS
from tests.cluster import MODEL, Cluster
from tests.integration.gateway.test_process import gateway_process
from tests.live_gateway import LiveGateway, live_gateway
from tests.nats_server import NatsServer

ABORTED_WITHIN_SECONDS = 5.0
TURN_SECONDS = 0.02
REQUESTS, TOKENS, STEP_SECONDS = 8, 400, 0.05  # 20 s for an answer
SAMPLED = Sampling(max_tokens=24, temperature=1.1)
NAMES = ("gateway-aaaaaaaa", "gateway-bbbbbbbb")


def calls(of: int) -> list[tuple[list[int], Sampling]]:
    return [([7, of, number], replace(SAMPLED, seed=100 * of + number)) for number in range(4)]


async def test_two_gateways_do_not_see_each_others_tokens(connect, make_transport, model: Path, alone):
    told: dict[str, list[Sealed | RequestInterrupted]] = {name: [] for name in NAMES}

    async def listen(bus: Bus, name: str) -> None:
        async def note(message: Sealed | RequestInterrupted) -> None:
            told[name].append(message)

        await bus.subscribe(Sealed.SUBJECT.format(gateway=name), note, Sealed, RequestInterrupted)

    def heard_by(gateway: LiveGateway) -> set[str]:
        """Names of the gateways whose requests it was told of, all of it sealed with its own key."""
        names = set[str]()
        for message in told[gateway.service.instance]:
            sealed = isinstance(message, Sealed)
            rows = unseal(message, gateway.service._seal_key, TokenBatch).rows if sealed else (message,)
            names |= {row.request.rpartition("-")[0] for row in rows}
        return names

    async with contextlib.AsyncExitStack() as running:
        cluster = await running.enter_async_context(
            Cluster(connect, make_transport, model, prefill=2, decode=2, blocks=256)
        )
        gateways = []
        for name in NAMES:
            bus = await connect(name)
            await listen(bus, name)
            gateways.append(await running.enter_async_context(live_gateway(bus, MODEL, name)))
        streams = [[gateway.begin(*call) for call in calls(of)] for of, gateway in enumerate(gateways, start=10)]
        await asyncio.gather(*(stream.ended() for some in streams for stream in some))
        await cluster.until(cluster.idle)
    for of, some in enumerate(streams, start=10):
        assert [stream.tokens for stream in some] == [alone(*call) for call in calls(of)]
    assert [heard_by(gateway) for gateway in gateways] == [{name} for name in NAMES]


async def test_when_one_of_two_gateways_dies_its_requests_end_and_those_of_the_other_go_on(
    connect, make_transport, model: Path, alone
):
    async with (
        Cluster(connect, make_transport, model, prefill=2, decode=2, blocks=256) as cluster,
        live_gateway(await connect(NAMES[1]), MODEL, NAMES[1]) as survivor,
    ):
        for number in range(3):  # the cluster's own gateway is the one that dies
            await cluster.gateway.submit([9, number], replace(SAMPLED, max_tokens=200), MODEL)
        await cluster.gateway.close()
        streams = [survivor.begin(*call) for call in calls(11)]
        await asyncio.gather(*(stream.ended() for stream in streams))
        await cluster.until(cluster.idle)
        await cluster.until(lambda: cluster.scheduler.idle)
    assert [stream.tokens for stream in streams] == [alone(*call) for call in calls(11)]


class Slow(Engine):
    """So that nothing ends by itself while the test runs, on any machine."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__
        self.steps = 0

    def step(self, pieces):
        self.steps += 1
        time.sleep(STEP_SECONDS)
        return super().step(pieces)


@dataclass
class Awake:
    """Time in which this process, with everything in it but the killed gateway, had its turn: a machine that is busy
    with something else delays the beats of all, and what is concluded from them."""

    seconds: float = 0.0

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TURN_SECONDS)
            self.seconds += min(time.monotonic() - before, 2 * TURN_SECONDS)


@contextlib.asynccontextmanager
async def awake_seconds() -> AsyncIterator[Awake]:
    awake = Awake()
    counting = asyncio.create_task(awake.run())
    yield awake
    counting.cancel()


async def broken_off(client: httpx.AsyncClient, url: str, number: int) -> None:
    body = {"model": MODEL, "prompt": [9, number], "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    with pytest.raises(httpx.HTTPError):
        await client.post(f"{url}/v1/completions", json=body)


async def test_what_a_killed_gateway_had_under_way_is_aborted_everywhere_within_seconds(
    nats_server: NatsServer, connect_nats, make_transport, model: Path
):
    """Some of it runs, the rest waits for room: in the queue, or with its KV held. No instance hears any farewell."""
    engines: list[Slow] = []

    def slow(engine: Engine) -> Engine:
        engines.append(Slow(engine))
        return engines[-1]

    async with (
        Cluster(
            connect_nats,
            make_transport,
            model,
            decode=2,
            blocks=256,
            settings={"DISTSERVE_MAX_BATCH": "2"},
            engine_of=slow,
        ) as cluster,
        gateway_process(model, nats_server.url, SERVED_MODEL_NAME=MODEL) as gateway,
        httpx.AsyncClient(timeout=60.0, trust_env=False) as client,
        awake_seconds() as awake,
    ):
        await gateway.serving()
        async with asyncio.TaskGroup() as clients:
            for number in range(REQUESTS):
                clients.create_task(broken_off(client, gateway.url, number))
            everybody = [member.service for member in cluster.members.values()]
            await cluster.until(lambda: not cluster.scheduler.idle and all(one.works() for one in everybody))
            gateway.kill()
            killed_at = awake.seconds
        await cluster.until(lambda: cluster.idle() and cluster.scheduler.idle)
        assert awake.seconds - killed_at < ABORTED_WITHIN_SECONDS
    assert max(engine.steps for engine in engines) < TOKENS, "an answer may have come to its own end"


def test_instances_that_no_scheduler_tells_find_out_in_the_same_time():
    """Counted from its last beat, which came before its death."""
    assert LOST_SECONDS + SWEEP_SECONDS < ABORTED_WITHIN_SECONDS
