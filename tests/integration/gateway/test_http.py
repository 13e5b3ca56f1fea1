"""What is around the generation: errors, keys, limits, ids, health."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from services.gateway.config import GatewayConfig
from services.gateway.keys import KeyLimits
from services.gateway.model import ServedModel
from services.gateway.protocol import MOST_HEADER_BYTES
from shared.bus.memory import MemoryBus
from tests.integration.gateway.running_gateway import RunningGateway, eventually, run_gateway

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def guarded(config: GatewayConfig, model: ServedModel) -> AsyncIterator[RunningGateway]:
    """With API keys, and small limits on bodies."""
    strict = replace(config, api_keys=("first", "second"), most_body_bytes=2000, body_seconds=0.2)
    async with run_gateway(strict, model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        yield gateway


async def raw(gateway: RunningGateway, request: bytes) -> bytes:
    """Everything that comes back on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/other", 404),
    ],
)
async def test_every_error_has_openais_form(alone: RunningGateway, method: str, path: str, status: int) -> None:
    response = await alone.http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "param"),
    [
        (b"{", {"content-type": "application/json"}, 400, "body"),
        (b"{}", {"content-type": "text/plain"}, 415, "content-type"),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 415, "content-encoding"),
        (b'{"model": 5}', {"content-type": "application/json; charset=utf-8"}, 400, "model"),
    ],
)
async def test_a_body_that_is_not_json_is_refused(
    alone: RunningGateway, content: bytes, headers: dict[str, str], status: int, param: str
) -> None:
    response = await alone.http.post("/v1/chat/completions", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_a_body_above_the_limit_is_refused_whether_announced_or_not(guarded: RunningGateway) -> None:
    key = {"authorization": "Bearer first"}
    announced = await guarded.http.post("/v1/completions", content=b" " * 2001, headers=key)
    assert (announced.status_code, announced.json()["error"]["code"]) == (413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    chunked = await guarded.http.post("/v1/completions", content=chunks(), headers=key)
    assert chunked.status_code == 413


async def test_a_body_that_does_not_come_is_not_waited_for(guarded: RunningGateway) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer first\r\ncontent-length: 10\r\n"
    answer = await raw(guarded, head + b"connection: close\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")


async def test_a_head_above_the_limit_is_refused(alone: RunningGateway) -> None:
    head = b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * MOST_HEADER_BYTES + b"\r\n\r\n"
    answer = await raw(alone, head)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"type": "invalid_request_error"' in answer


async def test_bytes_that_are_not_http_are_refused(alone: RunningGateway) -> None:
    assert b'"code": "invalid_http"' in await raw(alone, b"hello there\r\n\r\n")


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic first", "first", "Bearer fürst".encode("latin-1")]
)
async def test_without_a_key_only_health_is_open(guarded: RunningGateway, header: Any) -> None:
    headers = {} if header is None else {"authorization": header}
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/nowhere"):
        response = await guarded.http.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (await guarded.http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 401
    for path in ("/health", "/live", "/ready"):
        assert (await guarded.http.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize("key", ["first", "second"])
async def test_any_of_the_keys_opens(guarded: RunningGateway, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert (await guarded.http.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("given", "echoed"), [("abc-1.2_3", "abc-1.2_3"), ("a b\tc;d{}", "abcd"), ("x" * 100, "x" * 64)]
)
async def test_a_request_id_is_echoed_with_nothing_strange_in_it(
    gateway: RunningGateway, given: str, echoed: str
) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": given})
    assert response.headers["x-request-id"] == echoed
    assert response.json()["id"].startswith(f"chatcmpl-{echoed}.")


async def test_a_request_without_id_gets_one_and_equal_ids_do_not_collide(gateway: RunningGateway) -> None:
    assert len((await gateway.http.get("/health")).headers["x-request-id"]) == 32
    headers = {"x-request-id": "same"}
    await asyncio.gather(*(gateway.http.post("/v1/chat/completions", json=CHAT, headers=headers) for _ in range(3)))
    assert len({work.request for work in gateway.backend.submitted}) == 3


async def test_alive_is_not_ready_and_ready_says_what_is_missing(alone: RunningGateway) -> None:
    assert (await alone.http.get("/health")).status_code == 200
    response = await alone.http.get("/ready")
    assert response.status_code == 503
    assert "no scheduler is alive" in response.json()["missing"]
    assert (await alone.http.get("/v1/models")).json()["data"] == []
    await alone.backend.start()
    await alone.ready()
    assert (await alone.http.get("/ready")).status_code == 200
    assert [model["id"] for model in (await alone.http.get("/v1/models")).json()["data"]] == ["tiny"]


async def test_a_gateway_that_is_ending_is_not_ready(gateway: RunningGateway) -> None:
    gateway.service.draining = True
    assert (await gateway.http.get("/ready")).status_code == 503


async def test_text_to_tokens_and_back(gateway: RunningGateway) -> None:
    text = "größer 日本語"
    tokens = (await gateway.http.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 512
    back = await gateway.http.post("/detokenize", json={"model": "tiny", "tokens": tokens["tokens"]})
    assert back.json() == {"prompt": text}


async def test_a_chat_can_be_tokenized_and_special_tokens_are_seen(gateway: RunningGateway) -> None:
    tokens = (await gateway.http.post("/tokenize", json={"messages": CHAT["messages"]})).json()["tokens"]
    assert tokens[0] == 1
    assert (await gateway.http.post("/detokenize", json={"tokens": tokens})).json() == {"prompt": "<|user|>hi:"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "x", "messages": []}),
        ("/tokenize", {"messages": []}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [320]}),
        ("/v1/completions", {"model": "tiny", "prompt": [320]}),
        ("/v1/completions", {"model": "tiny", "prompt": ""}),
        ("/v1/completions", {"model": "tiny", "prompt": "the " * 50_000}),
        ("/v1/completions", {"model": "tiny", "prompt": "the " * 600}),
        ("/v1/completions", {"model": "tiny", "prompt": "x", "logit_bias": {"320": 1}}),
    ],
)
async def test_what_the_model_cannot_use_is_refused(gateway: RunningGateway, path: str, body: dict[str, Any]) -> None:
    assert (await gateway.http.post(path, json=body)).status_code == 400


async def test_metrics_tell_of_requests_and_responses(gateway: RunningGateway) -> None:
    await gateway.http.post("/v1/chat/completions", json=CHAT)
    await gateway.http.get("/some/path/nobody/serves")
    text = (await gateway.http.get("/metrics")).text
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 5.0' in text
    assert 'distserve_http_responses_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'distserve_http_responses_total{route="other",status="404"} 1.0' in text
    assert "distserve_router_overhead_seconds_count 1.0" in text


async def test_an_unexpected_exception_is_told_without_its_inside(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(gateway.service, "begin", broken)
    response = await gateway.http.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text


async def test_a_key_that_has_used_up_its_minute_is_told_when_to_come_back(
    config: GatewayConfig, model: ServedModel
) -> None:
    strict = replace(config, api_keys=("first", "second"), key_limits=KeyLimits(per_minute=1))
    async with run_gateway(strict, model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        headers = [{"authorization": f"Bearer {key}"} for key in ("first", "first", "second")]
        answers = [await gateway.http.post("/v1/chat/completions", json=CHAT, headers=header) for header in headers]
        assert [answer.status_code for answer in answers] == [200, 429, 200]
        assert 50 < int(answers[1].headers["retry-after"]) <= 60
        assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"
        assert (await gateway.http.get("/v1/models", headers=headers[0])).status_code == 200


async def test_each_choice_of_each_prompt_counts_for_the_limits_of_a_key(
    config: GatewayConfig, model: ServedModel
) -> None:
    async with run_gateway(replace(config, key_limits=KeyLimits(at_once=4)), model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        body = {"model": "tiny", "prompt": ["x", "y"], "max_tokens": 3}
        assert (await gateway.http.post("/v1/completions", json=body | {"n": 2})).status_code == 200
        refusal = await gateway.http.post("/v1/completions", json=body | {"n": 3})
        assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "n")
        gateway.backend.queueing = True
        running = asyncio.create_task(gateway.http.post("/v1/completions", json=body))
        await eventually(lambda: gateway.service.live_requests == 2)
        assert (await gateway.http.post("/v1/completions", json=body | {"n": 2})).status_code == 429
        assert (await gateway.http.post("/tokenize", json={"prompt": "x"})).status_code == 200
        await cancelled(running)
        await eventually(lambda: not gateway.service.live_requests)
        gateway.backend.queueing = False
        assert (await gateway.http.post("/v1/completions", json=body | {"n": 2})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [70]}), ("/v1/chat/completions", CHAT)],
)
async def test_whatever_computes_counts_for_the_limits_of_a_key(
    config: GatewayConfig, model: ServedModel, path: str, body: dict[str, Any]
) -> None:
    async with run_gateway(replace(config, key_limits=KeyLimits(per_minute=1)), model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        answers = [await gateway.http.post(path, json=body) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]


async def test_millions_of_token_ids_are_refused_at_once(gateway: RunningGateway) -> None:
    body = b'{"model": "tiny", "%s": [' + b"1," * 2_000_000 + b"1]}"
    for path, name in (("/v1/completions", b"prompt"), ("/detokenize", b"tokens")):
        headers = {"content-type": "application/json"}
        answer = await gateway.http.post(path, content=body.replace(b"%s", name), headers=headers)
        assert answer.json()["error"]["code"] == "context_length_exceeded"


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
