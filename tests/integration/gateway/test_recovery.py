"""Whatever is lost on the way, a client gets one continuous answer, or an error it can act on."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.gateway.config import GatewayConfig
from services.gateway.errors import unavailable
from services.gateway.model import ServedModel
from services.gateway.requests import Patience
from shared.bus.memory import MemoryBus
from shared.messages.requests import AbortRequest, RefusalReason, Refused, SubmitRequest
from shared.messages.sealed import new_seal_key, seal, unseal
from shared.messages.tokens import Sealed, TokenBatch, TokenRow
from tests.integration.gateway.running_gateway import RunningGateway, eventually, run_gateway
from tests.integration.gateway.scripted_backend import DECODE

TEXT = "one two three four five six seven eight nine ten größer 日本語 🙂 end"
TOKENS = Sealed.SUBJECT.format(gateway="gateway-1")
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture
async def hurried(config: GatewayConfig, model: ServedModel) -> AsyncIterator[RunningGateway]:
    """No answer may take longer than a second."""
    async with run_gateway(replace(config, request_seconds=1.0), model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        yield gateway


async def streamed_text(gateway: RunningGateway) -> str:
    response = await gateway.http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 200
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert all("error" not in event for event in events), events[-1]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


def refusing(reason: RefusalReason, times: int = 10**6):
    left = [times]

    def refuse(work: SubmitRequest) -> Refused | None:
        left[0] -= 1
        if left[0] < 0:
            return None
        return Refused(
            request=work.request, attempt=work.attempt, reason=reason, message="because", retry_after_seconds=2.5
        )

    return refuse


async def test_a_request_whose_holder_is_lost_goes_on_without_a_seam(gateway: RunningGateway) -> None:
    gateway.backend.text, gateway.backend.token_seconds = TEXT, 0.005
    stream = asyncio.create_task(streamed_text(gateway))
    for _ in range(3):
        await asyncio.sleep(0.06)
        await gateway.backend.interrupt()
    assert await stream == TEXT
    attempts = [work.attempt for work in gateway.backend.submitted]
    assert attempts == sorted(attempts)
    assert len(attempts) > 1
    assert gateway.backend.submitted[-1].generated
    assert gateway.backend.ended[-1].attempt == attempts[-1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_fails_again_and_again_is_given_up_and_why_is_told_in_the_log_alone(
    gateway: RunningGateway, stream: bool
) -> None:
    gateway.backend.failing_with = reason = "the step failed: CUDA error in /opt/engine/step.py"
    with capture_logs() as logs:
        response = await gateway.http.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert "tried 6 times in vain" in response.text
    assert "CUDA" not in response.text
    assert [entry["reason"] for entry in logs if entry["event"] == "request_given_up"] == [reason]


async def test_lost_and_repeated_batches_leave_no_trace_in_the_answer(gateway: RunningGateway) -> None:
    count = 0

    def unreliable(subject: str, message: object) -> Sequence[float]:
        nonlocal count
        if subject != TOKENS:
            return (0.0,)
        count += 1
        return {2: (), 3: (0.0, 0.0), 5: (0.03,), 6: ()}.get(count % 7, (0.0,))

    gateway.hub.deliveries = unreliable
    gateway.backend.text, gateway.backend.token_seconds = TEXT, 0.005
    assert await streamed_text(gateway) == TEXT
    assert {work.attempt for work in gateway.backend.submitted} == {0}


async def test_a_lost_last_batch_is_asked_for(gateway: RunningGateway) -> None:
    def lose_the_end(subject: str, message: object) -> Sequence[float]:
        if subject != TOKENS or not isinstance(message, Sealed):
            return (0.0,)
        batch = unseal(message, gateway.service._seal_key, TokenBatch)
        lost = any(row.finish for row in batch.rows)
        return () if lost else (0.0,)

    gateway.hub.deliveries = lose_the_end
    async with asyncio.timeout(4):
        assert await streamed_text(gateway) == gateway.backend.text


async def test_after_a_reconnect_the_workers_are_asked_at_once_and_all_is_sent_in_one_event(
    gateway: RunningGateway,
) -> None:
    gateway.hub.deliveries = lambda subject, message: () if subject == TOKENS else (0.0,)
    call = asyncio.create_task(gateway.http.post("/v1/completions", json=BODY | {"prompt": "x"}))
    await asyncio.sleep(0.1)
    assert not call.done()
    await gateway.hub.restart()
    async with asyncio.timeout(0.6):  # not after a second of silence
        event, done = (await call).text.strip().split("\n\n")
    assert json.loads(event.removeprefix("data: "))["choices"][0]["text"] == gateway.backend.text
    assert done == "data: [DONE]"


async def test_a_submission_that_fails_as_nobody_foresaw_is_made_again(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.service, "_patience", Patience(first=5.0, recovery=5.0))
    bus = gateway.service._bus
    request, failures = bus.request, []

    async def fail_twice(*args: Any, **kwargs: Any) -> Any:
        if len(failures) < 2:
            failures.append(RuntimeError("says the test"))
            raise failures[-1]
        return await request(*args, **kwargs)

    monkeypatch.setattr(bus, "request", fail_twice)
    async with asyncio.timeout(10):
        assert await streamed_text(gateway) == gateway.backend.text
    assert len(failures) == 2


async def test_what_is_told_in_parts_is_asked_for_until_the_end_has_come(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = len(gateway.backend._tokenizer.encode_now(gateway.backend.text, special_tokens=False)) + 1
    monkeypatch.setattr("shared.policy.token_log.MOST_RESUMED_NUMBERS", tokens // 2 + 1)
    gateway.hub.deliveries = lambda subject, message: () if subject == TOKENS else (0.0,)
    async with asyncio.timeout(5):
        assert await streamed_text(gateway) == gateway.backend.text
    assert [work.attempt for work in gateway.backend.submitted] == [0]


async def test_a_request_that_nobody_knows_any_more_is_submitted_again_as_it_was(gateway: RunningGateway) -> None:
    gateway.backend.queueing = True  # as if the scheduler had forgotten it
    stream = asyncio.create_task(streamed_text(gateway))
    await asyncio.sleep(0.2)
    gateway.backend.queueing = False
    async with asyncio.timeout(4):
        assert await stream == gateway.backend.text
    assert [work.attempt for work in gateway.backend.submitted] == [0, 0]  # it may well be known there


async def test_without_a_scheduler_the_client_is_told_to_come_again(alone: RunningGateway) -> None:
    response = await alone.http.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["type"] == "service_unavailable"


async def test_a_scheduler_that_comes_in_time_is_waited_for(alone: RunningGateway) -> None:
    stream = asyncio.create_task(streamed_text(alone))
    await asyncio.sleep(0.3)
    await alone.backend.start()
    assert await stream == alone.backend.text


@pytest.mark.parametrize(
    ("reason", "status", "retry_after"),
    [("queue_full", 429, "3"), ("no_instance", 503, "3"), ("too_long", 400, None)],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_is_the_response_itself(
    gateway: RunningGateway, reason: RefusalReason, status: int, retry_after: str | None, stream: bool
) -> None:
    gateway.backend.refuse = refusing(reason)
    response = await gateway.http.post("/v1/chat/completions", json=BODY | {"stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert response.json()["error"]["message"] == "because"


async def test_if_one_of_several_choices_is_refused_the_others_are_stopped(gateway: RunningGateway) -> None:
    refuse_all = refusing("queue_full")
    gateway.backend.refuse = lambda work: refuse_all(work) if work.request.endswith("-2") else None
    gateway.backend.token_seconds = 0.02
    response = await gateway.http.post("/v1/chat/completions", json=BODY | {"n": 3})
    assert response.status_code == 429
    await eventually(lambda: not gateway.backend.running)
    assert gateway.service.live_requests == 0


async def test_above_its_own_limit_the_gateway_refuses(config: GatewayConfig, model: ServedModel) -> None:
    async with run_gateway(replace(config, most_requests=2), model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        response = await gateway.http.post("/v1/chat/completions", json=BODY | {"n": 3})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert gateway.service.live_requests == 0


async def test_admission_by_target_tells_the_scheduler_how_long_there_is(
    config: GatewayConfig, model: ServedModel
) -> None:
    """The first time only: who was taken once is not refused for being late."""
    async with run_gateway(replace(config, admission="slo"), model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        gateway.backend.refuse = refusing("too_late", times=1)
        headers = {"x-llm-d-slo-ttft-ms": "30000"}
        response = await gateway.http.post("/v1/chat/completions", json=BODY, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        gateway.backend.token_seconds = 0.01
        answer = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY, headers=headers))
        await eventually(lambda: gateway.backend.running == 1)
        await gateway.backend.interrupt()
        assert (await answer).status_code == 200
        await gateway.http.post("/v1/chat/completions", json=BODY)  # has no target
    first, second, again, without = (work.first_token_within for work in gateway.backend.submitted)
    assert 25.0 < first <= 30.0
    assert 25.0 < second <= 30.0
    assert (again, without) == (0.0, 0.0)


async def test_a_running_stream_outlasts_a_full_queue(gateway: RunningGateway) -> None:
    gateway.backend.text, gateway.backend.token_seconds = TEXT, 0.005
    stream = asyncio.create_task(streamed_text(gateway))
    await asyncio.sleep(0.08)
    gateway.backend.refuse = refusing("queue_full", times=4)
    await gateway.backend.interrupt()
    assert await stream == TEXT


async def test_an_answer_that_takes_too_long_ends_with_an_error(hurried: RunningGateway) -> None:
    hurried.backend.queueing = True
    streamed, whole = await asyncio.gather(
        hurried.http.post("/v1/chat/completions", json=BODY),
        hurried.http.post("/v1/chat/completions", json=BODY | {"stream": False}),
    )
    *_, error, done = streamed.text.strip().split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert done == "data: [DONE]"
    assert (whole.status_code, whole.json()["error"]["type"]) == (504, "timeout_error")
    assert len({message.request for message in hurried.backend.aborted}) == 2


async def test_streams_that_the_end_of_the_gateway_cuts_short_say_so(gateway: RunningGateway) -> None:
    gateway.backend.text, gateway.backend.token_seconds = TEXT, 0.02
    call = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY))
    await asyncio.sleep(0.1)
    gateway.service.give_up_all(unavailable("This server is shutting down"))
    *_, error, done = (await call).text.strip().split("\n\n")
    assert "shutting down" in error
    assert done == "data: [DONE]"


async def test_an_abort_that_was_lost_is_sent_again(gateway: RunningGateway) -> None:
    lost = 0

    def lose_the_first(subject: str, message: object) -> Sequence[float]:
        nonlocal lost
        if isinstance(message, AbortRequest) and lost == 0:
            lost += 1
            return ()
        return (0.0,)

    gateway.hub.deliveries = lose_the_first
    gateway.backend.text, gateway.backend.token_seconds = "x" * 400, 0.02
    call = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY))
    await asyncio.sleep(0.1)
    call.cancel()
    await eventually(lambda: not gateway.backend.running)
    assert lost == 1


async def test_what_was_not_sealed_for_this_gateway_is_dropped_and_counted(gateway: RunningGateway) -> None:
    gateway.backend.text, gateway.backend.token_seconds = TEXT, 0.005
    forger, service = gateway.hub.connect("forger"), gateway.service
    stream = asyncio.create_task(streamed_text(gateway))
    await eventually(lambda: service.live_requests and gateway.backend.submitted)
    row = TokenRow(request=gateway.backend.submitted[0].request, attempt=0, index=0, tokens=(1,) * 5, finish="stop")
    batch = TokenBatch(source=DECODE, step=0, rows=(row,))
    tampered = seal(batch, service._seal_key).box[:-1]
    forged = (seal(batch, new_seal_key()), Sealed(box=tampered), Sealed(box=b""), batch)
    for message in forged:
        await forger.publish(TOKENS, message)
    assert await stream == TEXT
    assert service._bus.troubles.counts["bus_malformed_message"] == len(forged)
    await forger.close()
