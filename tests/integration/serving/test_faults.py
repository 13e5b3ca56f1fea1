"""Whatever breaks, the client gets the tokens it would have got, and every block comes back."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.engine.step import Engine
from shared.messages.handoff import KvReady, KvReleased, PullBlocks
from shared.messages.work import StartDecode
from shared.specs.sampling import Sampling
from tests.cluster import MODEL, Cluster
from tests.scripted_gateway import RequestRefused

PROMPT = list(range(10, 40))
LONG = Sampling(max_tokens=60, temperature=1.1, seed=7)


class FailingOnce(Engine):
    """The real engine, whose step number `fail_at` raises."""

    def __init__(self, engine: Engine, fail_at: int) -> None:
        self.__dict__ = engine.__dict__
        self._steps, self._fail_at = 0, fail_at

    def step(self, pieces):
        self._steps += 1
        if self._steps == self._fail_at:
            raise RuntimeError("out of memory, says the test")
        return super().step(pieces)


async def test_requests_go_on_elsewhere_when_their_decode_instance_dies(connect, make_transport, model: Path, alone):
    async with Cluster(connect, make_transport, model, decode=2) as cluster:
        answers = [await cluster.gateway.submit([*PROMPT, i], replace(LONG, seed=i), MODEL) for i in range(4)]
        await asyncio.gather(*(answer.has(3) for answer in answers))
        await cluster.kill(cluster.of("decode")[0])
        await asyncio.gather(*(answer.has(60) for answer in answers))
        await cluster.until(cluster.idle)
    assert [a.tokens for a in answers] == [alone([*PROMPT, i], replace(LONG, seed=i)) for i in range(4)]
    assert any(answer.interruptions for answer in answers)


async def test_a_request_whose_kv_died_with_its_prefill_instance_is_computed_again(
    connect, make_transport, model: Path, alone, hub
):
    held = asyncio.Event()

    def hold_back_pulls(subject: str, message: object) -> tuple[float, ...]:
        if isinstance(message, PullBlocks) and not held.is_set():
            held.set()
            return ()
        return (0.0,)

    hub.deliveries = hold_back_pulls
    async with Cluster(connect, make_transport, model, prefill=2) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await asyncio.wait_for(held.wait(), 10)
        source = next(i for i in cluster.of("prefill") if cluster.members[i].ledger.free < 64)
        await cluster.kill(source)
        await answer.has(60)
        await cluster.until(cluster.idle)
    assert answer.tokens == alone(PROMPT, LONG)


async def test_blocks_are_free_again_when_nobody_pulls_before_the_lease_ends(
    connect, make_transport, model: Path, alone, hub
):
    lost = []

    def lose_first_start(subject: str, message: object) -> tuple[float, ...]:
        if isinstance(message, StartDecode) and not lost:
            lost.append(message)
            return ()
        return (0.0,)

    hub.deliveries = lose_first_start
    settings = {"DISTSERVE_LEASE_SECONDS": "2", "DISTSERVE_TRANSFER_TIMEOUT": "1"}
    async with Cluster(connect, make_transport, model, settings=settings) as cluster:
        answer = await cluster.gateway.generate(PROMPT, LONG, MODEL)
        await cluster.until(cluster.idle)
    assert answer.tokens == alone(PROMPT, LONG)
    assert lost


async def test_kv_that_waits_is_offered_to_a_new_scheduler(connect, make_transport, model: Path, alone, hub):
    lost = asyncio.Event()

    def lose_first_start(subject: str, message: object) -> tuple[float, ...]:
        if isinstance(message, StartDecode) and not lost.is_set():
            lost.set()
            return ()
        return (0.0,)

    hub.deliveries = lose_first_start
    async with Cluster(connect, make_transport, model, settings={"DISTSERVE_LEASE_SECONDS": "30"}) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await asyncio.wait_for(lost.wait(), 10)
        await cluster.crash_scheduler()
        await answer.has(60)
        await cluster.until(cluster.idle)
    assert (answer.tokens, answer.interruptions) == (alone(PROMPT, LONG), [])


async def test_running_streams_do_not_notice_a_new_scheduler(connect, make_transport, model: Path, alone):
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await answer.has(3)
        await cluster.crash_scheduler()
        await answer.has(60)
        await cluster.until(cluster.idle)
    assert (answer.tokens, answer.interruptions) == (alone(PROMPT, LONG), [])


async def test_a_lost_release_only_costs_the_lease(connect, make_transport, model: Path, hub):
    hub.deliveries = lambda subject, message: () if isinstance(message, KvReleased) else (0.0,)
    settings = {"DISTSERVE_LEASE_SECONDS": "2", "DISTSERVE_TRANSFER_TIMEOUT": "1"}
    async with Cluster(connect, make_transport, model, settings=settings) as cluster:
        answer = await cluster.gateway.generate(PROMPT, LONG, MODEL)
        assert len(answer.tokens) == 60
        await cluster.until(cluster.idle)


async def test_doubled_messages_change_nothing(connect, make_transport, model: Path, alone, hub):
    async with Cluster(connect, make_transport, model, prefill=2, decode=2) as cluster:
        hub.deliveries = lambda subject, message: (
            (0.0, 0.01) if isinstance(message, KvReady | StartDecode | KvReleased) else (0.0,)
        )
        answer = await cluster.gateway.generate(PROMPT, LONG, MODEL)
        await cluster.until(cluster.idle)
    assert answer.tokens == alone(PROMPT, LONG)
    assert answer.interruptions == []


@pytest.mark.parametrize("tokens", [0, 1, 5])
async def test_an_abort_frees_everything_wherever_the_request_is(connect, make_transport, model: Path, tokens: int):
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await answer.has(tokens)
        await cluster.gateway.abort(answer)
        await answer.has(1000)
        assert answer.finish == "aborted"
        await cluster.until(cluster.idle)


async def test_the_youngest_is_resubmitted_when_blocks_run_out_and_nobody_loses_a_token(
    connect, make_transport, model: Path, alone
):
    async with Cluster(connect, make_transport, model, blocks=28) as cluster:
        answers = await asyncio.gather(
            *(cluster.gateway.generate([*PROMPT, i], replace(LONG, seed=i), MODEL) for i in range(3))
        )
        await cluster.until(cluster.idle)
    assert [a.tokens for a in answers] == [alone([*PROMPT, i], replace(LONG, seed=i)) for i in range(3)]
    assert any("preempted" in reason for answer in answers for reason in answer.interruptions)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_failed_step_hands_its_requests_back_and_the_instance_lives_on(
    connect, make_transport, model: Path, alone, role: str
):
    made = []

    def failing(engine: Engine) -> Engine:
        made.append(engine)
        wanted = 1 if role == "prefill" else 2  # the cluster starts prefill instances first
        return FailingOnce(engine, fail_at=1 if role == "prefill" else 5) if len(made) == wanted else engine

    async with Cluster(connect, make_transport, model, engine_of=failing) as cluster:
        answer = await cluster.gateway.generate(PROMPT, LONG, MODEL)
        await cluster.until(cluster.idle)
    assert answer.tokens == alone(PROMPT, LONG)
    assert answer.interruptions == [f"{role} failed: RuntimeError"], (
        "its text is for the log alone: others may hear this"
    )


async def test_a_draining_instance_finishes_what_it_has_and_gets_nothing_new(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model, decode=2) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await answer.has(2)
        busy = next(i for i in cluster.of("decode") if cluster.members[i].ledger.free < 64)
        leaving = cluster.members.pop(busy)
        leaving.stop.set()
        assert leaving.task is not None
        later = await cluster.gateway.generate([5, 6], replace(LONG, max_tokens=4), MODEL)
        await asyncio.wait_for(leaving.task, 10)
        assert (len(answer.tokens), answer.interruptions, len(later.tokens)) == (60, [], 4)
        await leaving.bus.close()
        await leaving.transport.close()


async def test_requests_of_a_lost_gateway_are_dropped(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model) as cluster:
        for number in range(3):
            await cluster.gateway.submit([*PROMPT, number], replace(LONG, max_tokens=200), MODEL)
        await cluster.gateway.close()
        await cluster.until(cluster.idle)


async def test_a_request_that_no_pool_can_hold_is_refused(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model, blocks=8) as cluster:
        with pytest.raises(RequestRefused, match="too_long"):
            await cluster.gateway.generate(PROMPT, LONG, MODEL)
