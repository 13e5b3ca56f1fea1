"""The whole path with every role behind its own key: nothing that serving needs is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cli.keys import make_keys, seed_file
from services.decode.config import DecodeConfig
from services.decode.service import DecodeService
from services.prefill.config import PrefillConfig
from services.prefill.service import PrefillService
from shared.bus import Bus, NotPermitted
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.messages.instances import Beat
from shared.messages.tokens import ResumedTokens, ResumeTokens
from shared.specs.ids import InstanceId, Role, new_instance_id, role_of
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import DecodeMetrics, PrefillMetrics
from tests.cluster import MODEL, SETTINGS, Cluster, Connect
from tests.nats_server import GUARDED, NatsServer

PROMPTS = [[7, 8, 9], list(range(10, 40)), [100, 30] * 20]
GREEDY = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(1,))
LONG = Sampling(max_tokens=60, temperature=0.0)


@pytest.fixture
def buses() -> list[NatsBus]:
    """Every connection that `connect_by_role` has made."""
    return []


@pytest.fixture
async def connect_by_role(tmp_path: Path, buses: list[NatsBus]) -> AsyncIterator[Connect]:
    server = NatsServer(tmp_path, GUARDED, make_keys(tmp_path / "keys"))
    server.start()
    async with AsyncExitStack() as connections:

        async def open_connection(name: str) -> Bus:
            role = {"observer": "operator"}.get(name) or name.partition("-")[0]
            settings = BusSettings(url=server.url, nkey_seed_file=seed_file(tmp_path / "keys", role))
            buses.append(await connections.enter_async_context(await NatsBus.connect(settings, name=name, role=role)))
            return buses[-1]

        yield open_connection
    server.stop()


async def test_everything_that_serving_does_is_permitted(
    connect_by_role: Connect, buses: list[NatsBus], make_transport, model: Path, alone
):
    async with Cluster(connect_by_role, make_transport, model, prefill=1, decode=2) as cluster:
        gateway = cluster.gateway
        answers = await asyncio.gather(*(gateway.generate(prompt, GREEDY, MODEL) for prompt in PROMPTS))
        unwanted, interrupted = [await gateway.submit(PROMPTS[1], LONG, MODEL) for _ in range(2)]
        await asyncio.gather(unwanted.has(2), interrupted.has(2))
        await gateway.abort(unwanted)
        for instance in (*cluster.of("prefill"), *cluster.of("decode")):
            subject = ResumeTokens.SUBJECT.format(role=role_of(instance), instance=instance)
            question = ResumeTokens(gateway=gateway.instance, wants=())
            await gateway._bus.request(subject, question, ResumedTokens, timeout_seconds=5)
        await cluster.crash_scheduler()
        await interrupted.has(LONG.max_tokens)
        await cluster.until(cluster.idle)
    assert [answer.tokens for answer in answers] == [alone(prompt, GREEDY) for prompt in PROMPTS]
    assert interrupted.tokens == alone(PROMPTS[1], LONG)
    assert {bus.troubles.counts["bus_permission_violation"] for bus in buses} == {0}


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_no_beat_of_a_compromised_instance_takes_the_lead_away(
    connect_by_role: Connect, buses: list[NatsBus], make_transport, model: Path, alone, role: Role
):
    """Its own with a huge term, one in the scheduler's name on the subject it may use, one on the scheduler's."""
    forger, name = await connect_by_role(f"{role}-forger"), InstanceId(f"{role}-f0f0f0f0")
    own, others = Beat.SUBJECT.format(role=role, instance=name), Beat.SUBJECT.format(role="scheduler", instance=name)
    async with Cluster(connect_by_role, make_transport, model, prefill=1, decode=1) as cluster:
        (leader,) = [beat.instance for beat in cluster.beats.values() if beat.role == "scheduler"]
        answers = asyncio.gather(*(cluster.gateway.generate(prompt, GREEDY, MODEL) for prompt in PROMPTS))
        led = []
        for number in range(30):
            for claim in (2**64 - 1, 2**62 + number):
                honest = Beat(instance=name, role=role, number=number, ready=False, term=claim)
                posing = Beat(instance=leader, role="scheduler", number=number, term=claim)
                for subject, beat in ((own, honest), (own, posing), (others, posing)):
                    await forger.publish(subject, beat)
            await asyncio.sleep(0.02)
            led.append(cluster.scheduler._campaign.leads())
        tokens = [answer.tokens for answer in await answers]
        await cluster.crash_scheduler()
        after = await cluster.gateway.generate(PROMPTS[1], GREEDY, MODEL)
        terms = [beat.term for beat in cluster.beats.values() if beat.instance != name]
    assert tokens == [alone(prompt, GREEDY) for prompt in PROMPTS]
    assert after.tokens == alone(PROMPTS[1], GREEDY)
    assert all(led)
    assert max(terms) < 2**62, "nobody takes over a term because it was claimed"
    assert {bus.troubles.counts["bus_permission_violation"] for bus in buses if bus is not forger} == {0}


@pytest.mark.parametrize(("role", "key"), [("prefill", "decode"), ("decode", "prefill")])
async def test_an_instance_with_the_key_of_the_other_role_does_not_start(
    connect_by_role: Connect, make_transport, model: Path, role: Role, key: str
):
    instance, bus = new_instance_id(role), await connect_by_role(key)
    engine = Engine.load(EngineSettings(model=str(model), blocks=8, block_tokens=4, threads=1))
    settings = SETTINGS | {"DISTSERVE_MODEL": str(model)}
    transport = make_transport(instance)
    if role == "prefill":
        made = PrefillMetrics(instance, MODEL)
        service = PrefillService(PrefillConfig.from_env(settings), instance, bus, transport, engine, made)
    else:
        made = DecodeMetrics(instance, MODEL)
        service = DecodeService(DecodeConfig.from_env(settings), instance, bus, transport, engine, made)
    with pytest.raises(NotPermitted, match=f"ds.v1.{role}"):
        await service.run(asyncio.Event())
