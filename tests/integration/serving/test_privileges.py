"""The whole path with every role behind its own key: nothing that serving needs is refused."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace
from nats.aio.msg import Msg

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
from shared.messages.codec import MalformedMessage, decode
from shared.messages.instances import Beat
from shared.messages.requests import Accepted, Refused, SubmitRequest
from shared.messages.sealed import unseal
from shared.messages.tokens import RequestInterrupted, ResumedTokens, ResumeTokens, Sealed, TokenBatch, Want
from shared.specs.ids import InstanceId, Role, new_instance_id, role_of
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import DecodeMetrics, PrefillMetrics
from tests.cluster import MODEL, SETTINGS, Cluster, Connect
from tests.live_gateway import live_gateway
from tests.nats_server import GUARDED, NatsServer
from tests.tls import SECURED, certify

PROMPTS = [[7, 8, 9], list(range(10, 40)), [100, 30] * 20]
GREEDY = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(1,))
LONG = Sampling(max_tokens=60, temperature=0.0)


class GatedEngine(Engine):
    """The real engine, whose steps after the third wait for the gate."""

    def __init__(self, engine: Engine, gate: threading.Event) -> None:
        self.__dict__ = engine.__dict__
        self._gate, self._steps = gate, 0

    def step(self, pieces):
        self._steps += 1
        assert self._steps <= 3 or self._gate.wait(20)
        return super().step(pieces)


@pytest.fixture
def buses() -> list[NatsBus]:
    """Every connection that `connect_by_role` has made."""
    return []


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NatsServer]:
    """In clear text, or over TLS if a test asks for "tls"."""
    keys, certificates = make_keys(tmp_path / "keys"), {}
    secured = getattr(request, "param", "") == "tls"
    if secured:
        _, certificates = certify(tmp_path)
    server = NatsServer(tmp_path, SECURED if secured else GUARDED, {**keys, **certificates})
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def connect_by_role(server: NatsServer, tmp_path: Path, buses: list[NatsBus]) -> AsyncIterator[Connect]:
    authority = tmp_path / "ca.pem"
    secured = authority.exists()
    url, ca_file = (server.url.replace("nats://", "tls://"), authority) if secured else (server.url, None)
    async with AsyncExitStack() as connections:

        async def open_connection(name: str) -> Bus:
            role = {"observer": "operator"}.get(name) or name.partition("-")[0]
            settings = BusSettings(url=url, ca_file=ca_file, nkey_seed_file=seed_file(tmp_path / "keys", role))
            buses.append(await connections.enter_async_context(await NatsBus.connect(settings, name=name, role=role)))
            return buses[-1]

        yield open_connection


@pytest.mark.parametrize("server", ["clear", "tls"], indirect=True)
async def test_everything_that_serving_does_is_permitted(
    connect_by_role: Connect, buses: list[NatsBus], server: NatsServer, make_transport, model: Path, alone
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
            await gateway._bus.request(subject, question, Sealed, ResumedTokens, timeout_seconds=5)
        await cluster.crash_scheduler()
        await interrupted.has(LONG.max_tokens)
        await cluster.until(cluster.idle)
        await server.restart()
        alive = [bus for bus in buses if not bus.closed.is_set()]
        await cluster.until(lambda: all(bus._client.stats["reconnects"] for bus in alive))
        await asyncio.gather(*(bus.round_trip() for bus in alive))
        later = await gateway.generate(PROMPTS[2], GREEDY, MODEL)
        await cluster.until(cluster.idle)
    assert later.tokens == alone(PROMPTS[2], GREEDY)
    assert [answer.tokens for answer in answers] == [alone(prompt, GREEDY) for prompt in PROMPTS]
    assert interrupted.tokens == alone(PROMPTS[1], LONG)
    assert {bus.troubles.counts["bus_permission_violation"] for bus in buses} == {0}


async def test_a_gateway_that_was_taken_over_learns_no_token_of_another_ones(
    connect_by_role: Connect, buses: list[NatsBus], make_transport, model: Path, alone
):
    """It hears everything that its key lets it hear, asks in the other's name, and submits the other's requests."""
    await connect_by_role("gateway-spy")
    (spy,), name, heard, gate = buses, InstanceId("gateway-5b5b5b5b"), list[bytes](), threading.Event()

    async def overhear(message: Msg) -> None:
        heard.append(message.data)

    async with (
        Cluster(connect_by_role, make_transport, model, engine_of=lambda engine: GatedEngine(engine, gate)) as cluster,
        live_gateway(await connect_by_role("gateway-live"), MODEL) as victim,
    ):
        for subject in ("ds.v1.tokens.*", "_INBOX_gateway.>"):
            await spy.listen(subject, overhear)
        stream = victim.begin(PROMPTS[1], LONG)
        request = stream.live.life.request
        await stream.has(2)
        wants = (Want(request=request, attempt=0, next_index=0),)
        for instance in cluster.members:
            subject = ResumeTokens.SUBJECT.format(role=role_of(instance), instance=instance)
            question = ResumeTokens(gateway=victim.service.instance, wants=wants)
            answer = await spy.request(subject, question, Sealed, ResumedTokens, timeout_seconds=5)
            assert isinstance(answer, Sealed) or not answer.rows
        for attempt in range(3):
            work = replace(stream.live.life.work(), gateway=name, attempt=attempt, seal_key=bytes(32))
            reply = await spy.request(SubmitRequest.SUBJECT, work, Accepted, Refused, timeout_seconds=5)
            assert isinstance(reply, Refused)
        victim.service._resync.ask_about([stream.live.life])
        gate.set()
        await stream.ended()
        await cluster.until(cluster.idle)
    assert (stream.tokens, stream.attempts) == (alone(PROMPTS[1], LONG), 1)
    messages = [decode(data, Sealed, ResumedTokens, Accepted, Refused, RequestInterrupted) for data in heard]
    boxes = [message for message in messages if isinstance(message, Sealed)]
    assert len(boxes) >= LONG.max_tokens
    assert not [message for message in messages if isinstance(message, ResumedTokens) and message.rows]
    for box in boxes:
        with pytest.raises(MalformedMessage):
            unseal(box, bytes(32), TokenBatch)


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
