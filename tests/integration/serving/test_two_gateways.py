"""Two gateways share the instances: each hears of its own requests only, and one of them may die."""

import asyncio
import contextlib
from pathlib import Path

from msgspec.structs import replace

from services.scheduler.limits import Limits
from services.scheduler.service import TICK_SECONDS
from shared.bus.interface import Bus
from shared.messages.sealed import unseal
from shared.messages.tokens import RequestInterrupted, Sealed, TokenBatch
from shared.specs.sampling import Sampling
from shared.worker.neighbours import LOST_SECONDS, SWEEP_SECONDS
from tests.cluster import MODEL, Cluster
from tests.live_gateway import LiveGateway, live_gateway

ABORTED_WITHIN_SECONDS = 5.0
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


def test_the_requests_of_a_dead_gateway_are_aborted_within_seconds():
    """Counted from its last beat, which came before its death."""
    assert LOST_SECONDS + SWEEP_SECONDS < ABORTED_WITHIN_SECONDS
    assert Limits().gateway_lost_seconds + TICK_SECONDS < ABORTED_WITHIN_SECONDS
