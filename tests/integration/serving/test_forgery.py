"""What somebody says who was not asked changes nothing."""

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

import nats
import pytest
from msgspec.structs import replace

from shared.bus.memory import MemoryBus
from shared.messages.codec import encode
from shared.messages.handoff import Gone, KvReady, KvReleased, KvRenewed, LinkTest, PullBlocks, Sending
from shared.messages.instances import Beat
from shared.messages.requests import AbortRequest, Accepted, RequestEnded, SubmitRequest
from shared.messages.tokens import RequestInterrupted, ResumeTokens, Sealed
from shared.messages.work import StartDecode, StartPrefill
from shared.specs.ids import BlockId, InstanceId, RequestId
from shared.specs.sampling import Sampling
from tests.cluster import MODEL, Cluster
from tests.nats_server import NatsServer

PROMPT = list(range(10, 40))
SHORT = Sampling(max_tokens=8, temperature=0.0)
UNSOUND = [
    ((), {}),
    ((5, -1), {}),
    ((5, 2**40), {}),
    ((5,), {"logit_bias": ((-(10**9), 1.0),)}),
    ((5,), {"logprobs": 2**40}),
    ((5,), {"max_tokens": -1}),
]
MESSAGES = (
    *(SubmitRequest, StartPrefill, StartDecode, KvReady, PullBlocks, KvReleased, KvRenewed, LinkTest, Sealed),
    *(RequestInterrupted, ResumeTokens, AbortRequest, RequestEnded, Beat),
)


def hold(hub: MemoryBus) -> asyncio.Queue[KvReady]:
    """The KV waits for half a second where it is; whoever reads the queue knows of it."""
    held: asyncio.Queue[KvReady] = asyncio.Queue()

    def keep_it_waiting(subject: str, message: object) -> Sequence[float]:
        if isinstance(message, KvReady) and held.empty():
            held.put_nowait(message)
        return (0.5,) if isinstance(message, StartDecode) else (0.0,)

    hub.deliveries = keep_it_waiting
    return held


def pull_of(ready: KvReady, runs: Sequence[tuple[BlockId, int]], secret: bytes) -> PullBlocks:
    """What somebody asks for who heard of that KV."""
    return PullBlocks(
        request=ready.work.request,
        attempt=ready.work.attempt,
        puller=InstanceId("decode-0badbad0"),
        address=b"",
        transfer=1,
        runs=tuple(runs),
        secret=secret,
    )


async def test_kv_is_sent_to_nobody_who_does_not_have_the_secret_of_its_handle(
    connect, make_transport, model: Path, alone, hub: MemoryBus
):
    async with Cluster(connect, make_transport, model) as cluster:
        held = hold(hub)
        thief = await connect("thief")
        request = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        ready = await asyncio.wait_for(held.get(), 5)
        assert len(ready.kv.secret) == 16
        for secret in (b"", bytes(16), ready.kv.secret[:-1]):
            pull = pull_of(ready, [(block, 1) for block in ready.kv.blocks], secret)
            subject = PullBlocks.SUBJECT.format(instance=ready.kv.source)
            answer = await thief.request(subject, pull, Sending, Gone, timeout_seconds=1.0)
            assert answer == Gone(
                request=RequestId(ready.work.request), attempt=0, reason="this is not the secret of its handle"
            )
        await request.has(SHORT.max_tokens)
        await cluster.until(cluster.idle)
    assert (request.tokens, request.interruptions) == (alone(PROMPT, SHORT), [])


async def test_blocks_that_were_not_given_are_sent_to_nobody_whatever_the_numbers(
    connect, make_transport, model: Path, alone, hub: MemoryBus
):
    """With the secret of the handle: a decode instance that was taken over has some."""
    async with Cluster(connect, make_transport, model) as cluster:
        held = hold(hub)
        thief = await connect("thief")
        request = await cluster.gateway.submit(PROMPT, SHORT, MODEL)
        ready = await asyncio.wait_for(held.get(), 5)
        first, other = ready.kv.blocks[0], BlockId((max(ready.kv.blocks) + 1) % 64)
        forged = ([], [(first, 2**62)], [(first, -1)], [(other, 1)], [(first, 1)] * (len(ready.kv.blocks) + 1))
        for runs in forged:
            pull = pull_of(ready, runs, ready.kv.secret)
            subject = PullBlocks.SUBJECT.format(instance=ready.kv.source)
            answer = await thief.request(subject, pull, Sending, Gone, timeout_seconds=5.0)
            assert answer == Gone(request=ready.work.request, attempt=0, reason="these blocks are not of this request")
        await request.has(SHORT.max_tokens)
        await cluster.until(cluster.idle)
    assert (request.tokens, request.interruptions) == (alone(PROMPT, SHORT), [])


@pytest.mark.parametrize("colocated", ["0", "1"])
async def test_work_that_no_engine_can_do_costs_its_neighbours_nothing(
    connect, make_transport, model: Path, alone, colocated: str
):
    rejected: asyncio.Queue[str] = asyncio.Queue()

    async def note(message: RequestInterrupted) -> None:
        rejected.put_nowait(message.reason)

    settings = {"DISTSERVE_COLOCATED": colocated}
    prefill = 0 if colocated == "1" else 1
    async with Cluster(connect, make_transport, model, prefill=prefill, settings=settings) as cluster:
        forger, name = await connect("forger"), InstanceId("gateway-0badbad0")
        await forger.subscribe(RequestInterrupted.SUBJECT.format(gateway=name), note, RequestInterrupted)
        answers = asyncio.gather(*(cluster.gateway.generate([*PROMPT, i], SHORT, MODEL) for i in range(4)))
        for number, (prompt, changes) in enumerate(UNSOUND):
            forged = SubmitRequest(
                request=RequestId(f"forged-{number}"),
                attempt=0,
                gateway=name,
                model=MODEL,
                prompt=prompt,
                sampling=replace(SHORT, **changes),
                seal_key=bytes(32),
            )
            await forger.request(SubmitRequest.SUBJECT, forged, Accepted, timeout_seconds=5.0)
            assert "rejected" in await asyncio.wait_for(rejected.get(), 5)
        done = await answers
        await cluster.until(cluster.idle)
    assert [answer.tokens for answer in done] == [alone([*PROMPT, i], SHORT) for i in range(4)]
    assert [answer.interruptions for answer in done] == [[]] * 4


async def test_garbage_on_every_subject_changes_no_answer(
    connect_nats, make_transport, model: Path, alone, nats_server: NatsServer
):
    chance = random.Random(7)
    intruder = await nats.connect(nats_server.url)
    async with Cluster(connect_nats, make_transport, model) as cluster:
        instances = [*cluster.members, "gateway-0"]
        subjects = {
            message.SUBJECT.format(instance=instance, gateway=instance, role=instance.partition("-")[0])
            for message in MESSAGES
            for instance in instances
        }
        wrong_kind = encode(AbortRequest(request=RequestId("nobody's"), attempt=0))
        answers = asyncio.gather(*(cluster.gateway.generate([*PROMPT, i], SHORT, MODEL) for i in range(4)))
        for _ in range(5):
            for subject in sorted(subjects):
                await intruder.publish(subject, os.urandom(chance.randrange(64)))
                await intruder.publish(subject, wrong_kind)
                await intruder.publish(subject, wrong_kind[: chance.randrange(len(wrong_kind))])
            await intruder.flush()
        tokens = [answer.tokens for answer in await answers]
        await cluster.until(cluster.idle)
    await intruder.close()
    assert tokens == [alone([*PROMPT, i], SHORT) for i in range(4)]
