"""Messages that cross each other at one instance, and what fails in the middle of something: nobody waits for ever."""

import asyncio
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from opentelemetry.context import Context

from services.decode import puller
from services.decode.puller import Puller, PullLimits
from services.decode.sequence import Arrival
from shared.bus.memory import MemoryBus
from shared.engine.pieces import NonFiniteLogits
from shared.engine.step import Engine
from shared.messages.handoff import KvHandle, KvReleased, KvRenewed, LinkTest, PullBlocks
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.sealed import new_seal_key, unseal
from shared.messages.tokens import RequestInterrupted, Sealed, TokenBatch, TokenRow
from shared.messages.work import StartDecode, Started
from shared.specs.ids import BlockId, InstanceId, RequestId
from shared.specs.sampling import Sampling
from shared.transport.interface import TransferFailed
from shared.transport.loopback import LoopbackTransport
from shared.worker.teller import Teller
from tests.cluster import MODEL, Cluster
from tests.live_gateway import live_gateway

PROMPT = list(range(10, 40))
SHORT = Sampling(max_tokens=8, temperature=0.0)
GATEWAY = InstanceId("gateway-77777777")
SEAL_KEY = new_seal_key()
HANDLE = KvHandle(
    source=InstanceId("prefill-00000000"), blocks=(BlockId(0),), tokens=3, lease_seconds=30.0, first_token=9
)


def work_of(name: str, attempt: int = 0) -> SubmitRequest:
    return SubmitRequest(
        request=RequestId(name),
        attempt=attempt,
        gateway=GATEWAY,
        model=MODEL,
        prompt=(7, 8, 9),
        sampling=SHORT,
        seal_key=SEAL_KEY,
    )


class GatedEngine(Engine):
    """The real engine, whose steps wait for the gate."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__
        self.entered, self.gate = threading.Event(), threading.Event()

    def step(self, pieces):
        self.entered.set()
        assert self.gate.wait(20)
        return super().step(pieces)


class SlowEngine(Engine):
    """The real engine, 10 ms slower."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__

    def step(self, pieces):
        time.sleep(0.01)
        return super().step(pieces)


class FailingTransport(LoopbackTransport):
    """Receives nothing while `error` is set; self-tests of the link included."""

    error: Exception | None = None
    failed = 0

    async def receive(self, peer, address, buffers, ask, timeout_seconds):
        if self.error is not None:
            self.failed += 1
            raise self.error
        return await super().receive(peer, address, buffers, ask, timeout_seconds)


async def test_a_sequence_that_waits_for_blocks_goes_on_when_a_pull_has_failed(
    connect, make_transport, model: Path, alone, hub: MemoryBus
):
    """All free blocks were reserved for KV that never came; nobody joins who would wake the worker."""
    lost = asyncio.Event()

    def lose_pulls_of_the_second(subject: str, message: object) -> Sequence[float]:
        if isinstance(message, PullBlocks) and message.request.endswith("-1"):
            lost.set()
            return ()
        return (0.0,)

    hub.deliveries = lose_pulls_of_the_second
    async with Cluster(connect, make_transport, model, blocks=28, engine_of=SlowEngine) as cluster:
        first = await cluster.gateway.submit(PROMPT[:10], replace(SHORT, max_tokens=90), MODEL)
        await first.has(1)
        second = await cluster.gateway.submit([*PROMPT, *PROMPT[:18]], replace(SHORT, max_tokens=4), MODEL)
        await asyncio.wait_for(lost.wait(), 5)
        await cluster.gateway.abort(second)
        await first.has(90)
        await cluster.until(cluster.idle)
    assert first.tokens == alone(PROMPT[:10], replace(SHORT, max_tokens=90))


async def test_an_abort_of_the_attempt_before_does_not_end_the_next_one(connect, make_transport, model: Path, alone):
    """The abort waits for the bus, and in the meantime the next attempt comes in through another subscription."""
    settings = {"DISTSERVE_COLOCATED": "1", "DISTSERVE_MAX_BATCH": "1"}
    rows: list[TokenRow] = []
    ended = asyncio.Event()

    async def note(message: Sealed | RequestInterrupted) -> None:
        if isinstance(message, Sealed):
            rows.extend(row for row in unseal(message, SEAL_KEY, TokenBatch).rows if row.attempt == 1)
            if any(row.finish for row in rows):
                ended.set()

    async with Cluster(connect, make_transport, model, prefill=0, settings=settings) as cluster:
        (decode,) = cluster.of("decode")
        bus = await connect("test")
        await bus.subscribe(Sealed.SUBJECT.format(gateway=GATEWAY), note, Sealed, RequestInterrupted)
        busy = await cluster.gateway.submit(PROMPT, replace(SHORT, max_tokens=100), MODEL)
        await busy.has(1)
        subject = StartDecode.SUBJECT.format(instance=decode)
        term = max(beat.term for beat in cluster.beats.values())
        waits = StartDecode(work=work_of("r"), kv=HANDLE, term=term)
        again = StartDecode(work=work_of("r", attempt=1), term=term)
        await bus.request(subject, waits, Started, timeout_seconds=1)
        aborting = asyncio.create_task(
            bus.publish(AbortRequest.SUBJECT, AbortRequest(request=RequestId("r"), attempt=0))
        )
        await asyncio.sleep(0)
        await bus.request(subject, again, Started, timeout_seconds=1)
        await aborting
        await asyncio.wait_for(ended.wait(), 5)
        await cluster.until(cluster.idle)
    assert [token for row in rows for token in row.tokens] == alone([7, 8, 9], SHORT)
    assert [row.finish for row in rows if row.finish] == ["length"]


async def test_the_same_attempt_may_come_again_while_its_aborted_self_still_owns_blocks(
    connect, make_transport, model: Path, alone, hub: MemoryBus
):
    starts: list[StartDecode] = []

    def lose_pulls(subject: str, message: object) -> Sequence[float]:
        if isinstance(message, StartDecode):
            starts.append(message)
        return () if isinstance(message, PullBlocks) else (0.0,)

    hub.deliveries = lose_pulls
    async with Cluster(connect, make_transport, model) as cluster:
        (decode,) = cluster.of("decode")
        answer = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        await cluster.until(lambda: cluster.members[decode].ledger.free < 64)
        await cluster.gateway.abort(answer)
        await cluster.until(lambda: not cluster.members[decode].service.works())
        bus = await connect("test")
        reply = await bus.request(
            StartDecode.SUBJECT.format(instance=decode), starts[0], Started, Refused, timeout_seconds=1
        )
        assert isinstance(reply, Refused)
        hub.deliveries = lambda subject, message: (0.0,)
        await cluster.until(cluster.idle)
        later = await cluster.gateway.generate(PROMPT, SHORT, MODEL)
    assert later.tokens == alone(PROMPT, SHORT)


async def test_a_stray_release_does_not_disturb_a_context_that_is_being_computed(
    connect, make_transport, model: Path, alone
):
    made: list[GatedEngine] = []

    def gated(engine: Engine) -> Engine:
        made.append(GatedEngine(engine))
        return made[-1] if len(made) == 1 else engine  # the cluster starts prefill instances first

    async with Cluster(connect, make_transport, model, engine_of=gated) as cluster:
        (prefill,) = cluster.of("prefill")
        answer = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        await cluster.until(made[0].entered.is_set)
        bus = await connect("test")
        stray = KvReleased(request=answer.request, attempt=0, puller=InstanceId("decode-00000000"))
        await bus.publish(KvReleased.SUBJECT.format(instance=prefill), stray)
        await asyncio.sleep(0.05)
        made[0].gate.set()
        await answer.has(8)
        await cluster.until(cluster.idle)
    assert (answer.tokens, answer.interruptions) == (alone(PROMPT, SHORT), [])


async def test_a_pull_that_fails_in_an_unforeseen_way_hands_the_request_back(
    connect, wires, model: Path, alone, hub: MemoryBus
):
    transports: list[FailingTransport] = []

    def make(instance: InstanceId) -> LoopbackTransport:
        transports.append(FailingTransport(wires, instance))
        return transports[-1]

    async with Cluster(connect, make, model) as cluster:
        transports[1].error = RuntimeError("says the test")
        answer = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        await cluster.until(lambda: transports[1].failed > 0)
        transports[1].error = None
        await answer.has(8)
        await cluster.until(cluster.idle)
    assert answer.tokens == alone(PROMPT, SHORT)


async def test_an_instance_whose_link_has_broken_does_not_attract_all_requests(connect, wires, model: Path, alone):
    """It is always the least loaded one, as nothing succeeds there."""
    transports: dict[InstanceId, FailingTransport] = {}

    def make(instance: InstanceId) -> LoopbackTransport:
        transports[instance] = FailingTransport(wires, instance)
        return transports[instance]

    async with Cluster(connect, make, model, decode=2) as cluster:
        broken = min(cluster.of("decode"))
        transports[broken].error = TransferFailed(cluster.of("prefill")[0], "says the test")
        answers = [await cluster.gateway.generate([*PROMPT, i], SHORT, MODEL) for i in range(4)]
        await cluster.until(cluster.idle)
    assert [answer.tokens for answer in answers] == [alone([*PROMPT, i], SHORT) for i in range(4)]
    assert transports[broken].failed > 0
    assert max(len(answer.interruptions) for answer in answers) <= 1


async def test_wrong_bytes_are_pulled_again(connect, make_transport, model: Path, alone, wires, hub: MemoryBus):
    """A checksum that disagrees once costs a second pull, and nothing that a client could see."""
    pulls = 0

    def garble_the_first(subject: str, message: object) -> Sequence[float]:
        nonlocal pulls
        if isinstance(message, PullBlocks):
            pulls += 1
            source = cluster.of("prefill")[0]
            wires.faults = {source: "garbles"} if pulls == 1 else {}
        return (0.0,)

    async with Cluster(connect, make_transport, model) as cluster:
        hub.deliveries = garble_the_first
        answer = await cluster.gateway.generate(PROMPT, SHORT, MODEL)
        await cluster.until(cluster.idle)
    assert (answer.tokens, answer.interruptions, pulls) == (alone(PROMPT, SHORT), [], 2)


async def test_bytes_that_stay_wrong_never_become_tokens(connect, make_transport, model: Path, alone, wires, hub):
    pulls = 0

    def garble_two(subject: str, message: object) -> Sequence[float]:
        nonlocal pulls
        if isinstance(message, PullBlocks):
            pulls += 1
            wires.faults = {cluster.of("prefill")[0]: "garbles"} if pulls <= 2 else {}
        elif isinstance(message, LinkTest):  # after two failures in a row the link is tried again
            wires.faults = {}
        return (0.0,)

    async with Cluster(connect, make_transport, model) as cluster:
        hub.deliveries = garble_two
        answer = await cluster.gateway.generate(PROMPT, SHORT, MODEL)
        await cluster.until(cluster.idle)
    assert (answer.tokens, len(answer.interruptions), pulls) == (alone(PROMPT, SHORT), 1, 3)


async def test_tokens_reach_the_gateway_before_the_interruption_that_follows_them(hub: MemoryBus):
    """Else the gateway submits again without them, and they are computed once more."""
    bus, seen = hub.connect("gateway"), list[object]()

    async def note(message: object) -> None:
        seen.append(message)

    await bus.subscribe(Sealed.SUBJECT.format(gateway=GATEWAY), note, Sealed, RequestInterrupted)
    teller = Teller(hub.connect("decode"), InstanceId("decode-1"))
    teller.begin(work_of("r"))
    teller.tell(RequestId("r"), 5, None, None)
    await teller.interrupt(work_of("r"), "preempted")
    await bus.close()
    assert [type(message) for message in seen] == [Sealed, RequestInterrupted]


async def test_batches_reach_each_gateway_in_order_though_two_flushes_cross(hub: MemoryBus):
    """Else a gateway sees a gap where there is none, and asks everybody about everything."""
    bus, steps = hub.connect("gateway"), list[int]()

    async def note(message: Sealed) -> None:
        steps.append(unseal(message, SEAL_KEY, TokenBatch).step)

    await bus.subscribe(Sealed.SUBJECT.format(gateway=GATEWAY), note, Sealed)
    teller = Teller(hub.connect("decode"), InstanceId("decode-1"))
    teller.begin(replace(work_of("other"), gateway=InstanceId("gateway-11111111")))
    teller.begin(work_of("r"))
    teller.tell(RequestId("other"), 5, None, None)
    teller.tell(RequestId("r"), 5, None, None)
    first = asyncio.create_task(teller.flush())
    await asyncio.sleep(0)
    teller.tell(RequestId("r"), 6, None, None)
    await teller.flush()
    await first
    await bus.close()
    assert steps == [0, 1]


class PoisonedEngine(Engine):
    """The real engine; a step with this token in it fails."""

    POISON = 13

    def __init__(self, engine: Engine) -> None:
        self.__dict__ = engine.__dict__

    def step(self, pieces):
        if any(self.POISON in piece.tokens for piece in pieces):
            raise RuntimeError("says the test")
        return super().step(pieces)


async def test_a_request_that_no_engine_can_compute_takes_no_instance_out_of_service(
    connect, make_transport, model: Path, alone
):
    async with (
        Cluster(connect, make_transport, model, engine_of=PoisonedEngine) as cluster,
        live_gateway(await connect("live-gateway"), MODEL) as gateway,
    ):
        end = await asyncio.wait_for(gateway.begin([7, PoisonedEngine.POISON], SHORT).ended(), 10)
        assert end.error is not None
        assert all(beat.ready for beat in cluster.beats.values())
        later = gateway.begin([7, 8, 9], SHORT)
        await asyncio.wait_for(later.ended(), 10)
        await cluster.until(cluster.idle)
    assert later.tokens == alone([7, 8, 9], SHORT)


class NotFiniteOnce(SlowEngine):
    """Finds logits that are not finite for the prompt that begins with POISON, in its first step with others."""

    POISON = 13
    found = False

    def step(self, pieces):
        drawn = super().step(pieces)
        bad = [i for i, piece in enumerate(pieces) if piece.draw is not None and piece.draw.prompt[0] == self.POISON]
        if bad and len(pieces) > 1 and not self.found:
            self.found = True
            raise NonFiniteLogits(bad)
        return drawn


async def test_logits_that_are_not_finite_concern_only_the_sequence_that_has_them(
    connect, make_transport, model: Path, alone
):
    made: list[Engine] = []

    def second(engine: Engine) -> Engine:  # the cluster starts prefill instances first
        made.append(engine if not made else NotFiniteOnce(engine))
        return made[-1]

    long = replace(SHORT, max_tokens=40)
    async with Cluster(connect, make_transport, model, engine_of=second) as cluster:
        innocent = await cluster.gateway.submit([7, 8, 9], long, MODEL)
        await innocent.has(3)
        poisoned = await cluster.gateway.submit([13, 8, 9], long, MODEL)
        await asyncio.gather(innocent.has(40), poisoned.has(40))
        await cluster.until(cluster.idle)
    assert (innocent.tokens, poisoned.tokens) == (alone([7, 8, 9], long), alone([13, 8, 9], long))
    assert (len(innocent.interruptions), len(poisoned.interruptions)) == (0, 1)


async def test_what_waits_for_the_kv_of_a_lost_instance_is_handed_back_at_once(
    connect, make_transport, model: Path, alone
):
    """Not only when its turn comes: here that is never, the batch of one is in a step that does not end."""
    engines: list[GatedEngine] = []

    def gated(engine: Engine) -> Engine:
        engines.append(GatedEngine(engine))
        return engines[-1]

    settings = {"DISTSERVE_MAX_BATCH": "1"}
    async with Cluster(connect, make_transport, model, prefill=2, settings=settings, engine_of=gated) as cluster:
        engines[0].gate.set()
        engines[1].gate.set()
        first = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        await first.has(1)
        second = await cluster.gateway.submit(PROMPT[:9], SHORT, MODEL)
        (decode,) = cluster.of("decode")
        await cluster.until(lambda: len(cluster.members[decode].service.works()) == 2)
        await cluster.until(engines[2].entered.is_set)
        (prefill,) = [one for one in cluster.of("prefill") if cluster.members[one].service.works()]
        await cluster.kill(prefill)
        await cluster.until(lambda: second.interruptions == [f"its KV was lost with {prefill}"])
        engines[2].gate.set()
        await first.has(8)
        await second.has(8)
        await cluster.until(cluster.idle)
    assert (first.tokens, first.interruptions) == (alone(PROMPT, SHORT), [])
    assert second.tokens == alone(PROMPT[:9], SHORT)


async def test_a_lease_is_renewed_as_often_as_its_holder_has_set_it(hub: MemoryBus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(puller, "RENEWAL_TICK_SECONDS", 0.01)
    renewed: asyncio.Queue[KvRenewed] = asyncio.Queue()
    bus = hub.connect("prefill")
    await bus.subscribe(KvRenewed.SUBJECT.format(instance=HANDLE.source), renewed.put, KvRenewed)
    limits = PullLimits(at_once=1, seconds=1.0, message_bytes=1, checksum=False)
    anything = types.SimpleNamespace(block_bytes=1)
    pulling = Puller(hub.connect("decode"), anything, anything, anything, anything, InstanceId("decode-0"), limits)  # pyright: ignore[reportArgumentType]
    short, long = replace(HANDLE, lease_seconds=0.06), replace(HANDLE, lease_seconds=300.0)
    waiting = [Arrival(work_of("short"), short, Context()), Arrival(work_of("long"), long, Context())]
    renewing = asyncio.create_task(pulling.renew(lambda: waiting))
    async with asyncio.timeout(5):
        for _ in range(3):
            assert (await renewed.get()).requests == ((RequestId("short"), 0),)
    renewing.cancel()
