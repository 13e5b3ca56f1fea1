import asyncio
import statistics
import time
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.messages.requests import AbortRequest, Accepted, Refused
from shared.messages.work import StartDecode, StartPrefill
from shared.specs.ids import InstanceId
from shared.telemetry import traces
from tests.integration.scheduler.conftest import LIMITS, StartScheduler
from tests.integration.scheduler.scripted import Cast, work


@pytest.fixture
async def quick(start_scheduler: StartScheduler, cast: Cast):
    """A scheduler that has heard one gateway, one prefill and one decode instance."""
    gateway, prefill, decode = await cast.gateway(), await cast.prefill(), await cast.decode()
    scheduler = await start_scheduler()
    await scheduler.knows(lambda known: known.board.fleet.serves("tiny"))
    return scheduler, gateway, prefill, decode


async def test_a_request_goes_from_the_gateway_to_prefill_and_then_to_decode(quick):
    scheduler, gateway, prefill, decode = quick
    request = work("r")
    assert isinstance(await gateway.submit(request), Accepted)
    prefill_start = await prefill.started.get()
    assert isinstance(prefill_start, StartPrefill)
    assert prefill_start.work == request
    assert prefill_start.term > 0
    await prefill.say_kv_ready(request)
    start = await decode.started.get()
    assert isinstance(start, StartDecode)
    assert (start.work, start.term) == (request, prefill_start.term)
    assert start.kv is not None
    assert (start.kv.source, start.kv.blocks, start.kv.first_token) == ("prefill-1", (3, 4), 7)
    await gateway.end(request)
    await scheduler.knows(lambda known: not known.board.live)
    assert scheduler.service.idle


async def test_a_hundred_requests_at_once_all_come_through(quick):
    scheduler, gateway, prefill, decode = quick

    async def prefill_all():
        for _ in range(100):
            request = (await prefill.started.get()).work
            prefill.works.clear()
            await prefill.say_kv_ready(request)

    async def decode_all():
        for _ in range(100):
            request = (await decode.started.get()).work
            decode.works.clear()
            await gateway.end(request)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(prefill_all())
        tasks.create_task(decode_all())
        answers = await asyncio.gather(*[gateway.submit(work(f"r{number}")) for number in range(100)])
    assert all(isinstance(answer, Accepted) for answer in answers)
    await scheduler.knows(lambda known: not known.board.live)
    assert scheduler.service.idle


async def test_a_submission_is_answered_within_milliseconds(quick):
    _, gateway, _, _ = quick
    seconds = []
    for number in range(20):
        began = time.perf_counter()
        await gateway.submit(work(f"r{number}"))
        seconds.append(time.perf_counter() - began)
    assert statistics.median(seconds) < 0.05


async def test_a_request_keeps_its_trace_on_the_way(quick, recorded_spans: InMemorySpanExporter):
    _, gateway, prefill, decode = quick
    request = work("r")
    with traces.tracer().start_as_current_span("http") as root:
        await gateway.submit(request)
        await prefill.started.get()
        await prefill.say_kv_ready(request)
        await decode.started.get()
    trace_id = root.get_span_context().trace_id
    assert prefill.traces == [trace_id]
    assert decode.traces == [trace_id]
    (queue,) = [span for span in recorded_spans.get_finished_spans() if span.name == traces.SCHEDULER_QUEUE]
    assert queue.context is not None
    assert queue.attributes is not None
    assert queue.context.trace_id == trace_id
    assert queue.attributes[traces.REQUEST_ID] == "r"
    assert queue.attributes[traces.INSTANCE] == "prefill-1"


async def test_without_instances_a_request_is_refused(start_scheduler: StartScheduler, cast: Cast):
    gateway = await cast.gateway()
    scheduler = await start_scheduler()
    answer = await gateway.submit(work("r"))
    assert isinstance(answer, Refused)
    assert answer.reason == "no_instance"
    assert answer.retry_after_seconds > 0
    assert scheduler.service.idle


async def test_a_full_instance_is_passed_over_for_the_next_one(quick, cast: Cast):
    _, gateway, prefill, _ = quick
    prefill.refusal = "queue_full"
    request = work("r")
    assert isinstance(await gateway.submit(request), Accepted)
    other = await cast.prefill("prefill-2")
    await cast.decode("decode-2", peers=("prefill-1", "prefill-2"))
    assert (await asyncio.wait_for(other.started.get(), 5)).work == request
    assert prefill.started.empty()


async def test_an_abort_is_confirmed_to_its_gateway_and_does_not_count_as_a_failure(quick):
    scheduler, gateway, prefill, _ = quick
    prefill.refusal = "queue_full"
    await gateway.submit(work("r"))
    await gateway.bus.publish(AbortRequest.SUBJECT, AbortRequest(request=work("r").request, attempt=0))
    assert (await asyncio.wait_for(gateway.interrupted.get(), 5)).request == "r"
    assert "distserve_requests_interrupted_total 0.0" in scheduler.metrics.render()[0].decode()


async def test_a_start_without_an_answer_goes_back_to_the_gateway_and_is_aborted(quick):
    _, gateway, prefill, _ = quick
    prefill.silent = True
    await gateway.submit(work("r"))
    interrupted = await asyncio.wait_for(gateway.interrupted.get(), 5)
    assert (interrupted.request, interrupted.attempt) == ("r", 0)
    assert await asyncio.wait_for(prefill.aborted.get(), 5) == AbortRequest(request=interrupted.request, attempt=0)
    prefill.silent = False
    again = work("r", attempt=1)
    assert isinstance(await gateway.submit(again), Accepted)
    await prefill.started.get()
    assert (await asyncio.wait_for(prefill.started.get(), 5)).work == again


async def test_a_start_that_fails_as_nobody_foresaw_goes_back_to_the_gateway(quick, monkeypatch: pytest.MonkeyPatch):
    """Else it would look placed, and be accepted again each time its gateway asks."""
    scheduler, gateway, prefill, _ = quick

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("says the test")

    with monkeypatch.context() as patched:
        patched.setattr(scheduler.service._performer._bus, "request", fail)
        await gateway.submit(work("r"))
        interrupted = await asyncio.wait_for(gateway.interrupted.get(), 5)
    assert (interrupted.request, interrupted.attempt) == ("r", 0)
    await scheduler.knows(lambda known: not known.board.live)
    again = work("r", attempt=1)
    assert isinstance(await gateway.submit(again), Accepted)
    assert (await asyncio.wait_for(prefill.started.get(), 5)).work == again


async def test_the_requests_of_a_lost_instance_are_interrupted(quick):
    _, gateway, prefill, _ = quick
    await gateway.submit(work("r"))
    await prefill.started.get()
    prefill.die()
    interrupted = await asyncio.wait_for(gateway.interrupted.get(), 5)
    assert interrupted.request == "r"
    assert "prefill-1" in interrupted.reason


async def test_the_lease_of_waiting_kv_is_renewed_until_a_decode_instance_takes_it(quick):
    _, gateway, prefill, decode = quick
    decode.refusal = "queue_full"
    request = work("r")
    await gateway.submit(request)
    await prefill.started.get()
    await prefill.say_kv_ready(request)
    renewed = await asyncio.wait_for(prefill.renewed.get(), 5)
    assert renewed.requests == (("r", 0),)
    decode.refusal = None
    assert (await asyncio.wait_for(decode.started.get(), 5)).work == request


async def test_an_abort_frees_kv_that_waits_here(quick):
    scheduler, gateway, prefill, decode = quick
    decode.refusal = "queue_full"
    request = work("r")
    await gateway.submit(request)
    await prefill.started.get()
    await prefill.say_kv_ready(request)
    await gateway.bus.publish(AbortRequest.SUBJECT, AbortRequest(request=request.request, attempt=0))
    released = await asyncio.wait_for(prefill.released.get(), 5)
    assert (released.request, released.attempt) == ("r", 0)
    assert (await asyncio.wait_for(gateway.interrupted.get(), 5)).request == "r"
    await scheduler.knows(lambda known: not known.board.live)
    assert scheduler.service.idle


async def test_a_colocated_instance_gets_the_whole_request(start_scheduler: StartScheduler, cast: Cast):
    gateway, decode = await cast.gateway(), await cast.decode(colocated=True)
    scheduler = await start_scheduler()
    await scheduler.knows(lambda known: known.board.fleet.serves("tiny"))
    await gateway.submit(work("r"))
    start = await asyncio.wait_for(decode.started.get(), 5)
    assert isinstance(start, StartDecode)
    assert (start.work, start.kv) == (work("r"), None)


async def test_a_new_scheduler_does_not_place_again_what_an_instance_has(start_scheduler: StartScheduler, cast: Cast):
    gateway, prefill, decode = await cast.gateway(), await cast.prefill(), await cast.decode()
    request = work("r")
    decode.works[request.request] = request
    scheduler = await start_scheduler(replace(LIMITS, settle_seconds=0.4))
    assert isinstance(await gateway.submit(request), Accepted)
    await scheduler.knows(lambda known: known.settled)
    decode.die()
    interrupted = await asyncio.wait_for(gateway.interrupted.get(), 5)
    assert (interrupted.request, interrupted.reason) == ("r", "decode-1 is lost")
    assert prefill.started.empty()
    assert decode.started.empty()


async def test_a_scheduler_that_stops_hands_back_what_waits_there(quick):
    scheduler, gateway, prefill, _ = quick
    prefill.refusal = "queue_full"
    await gateway.submit(work("r"))
    await scheduler.knows(lambda known: any(one.full for one in known.board.fleet))
    await scheduler.end()
    assert (await asyncio.wait_for(gateway.interrupted.get(), 5)).request == "r"


async def test_the_requests_of_a_lost_gateway_are_stopped(cast: Cast, start_scheduler: StartScheduler):
    gateway, prefill = await cast.gateway(), await cast.prefill()
    await cast.decode()
    scheduler = await start_scheduler(replace(LIMITS, gateway_lost_seconds=0.4, unlisted_seconds=0.3))
    await scheduler.knows(lambda known: known.board.fleet.serves("tiny"))
    await gateway.submit(work("r"))
    await prefill.started.get()
    gateway.die()
    assert (await asyncio.wait_for(prefill.aborted.get(), 5)).request == "r"
    await scheduler.knows(lambda known: InstanceId("gateway-1") not in dict(known.board.fleet.copy()[1]))
    await scheduler.knows(lambda known: not known.board.live)  # a beat from before the abort may have brought it back
    assert scheduler.service.idle
