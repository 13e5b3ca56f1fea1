"""No connection outlives its deadlines, whatever its client sends or does not take."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from services.gateway import protocol
from services.gateway.config import GatewayConfig
from services.gateway.keys import KeyLimits
from services.gateway.model import ServedModel
from shared.bus.memory import MemoryBus
from tests.integration.gateway.running_gateway import RunningGateway, eventually, run_gateway

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def connection(gateway: RunningGateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        async with asyncio.timeout(5):
            yield reader, writer
    finally:
        writer.close()


def chat(**fields: object) -> bytes:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def one_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    return head + await reader.readexactly(int(length.partition(b": ")[2]))


@pytest.fixture
def short_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)


@pytest.fixture
async def impatient(config: GatewayConfig, model: ServedModel) -> AsyncIterator[RunningGateway]:
    """A hundred requests at once, and 0.3 seconds to take what is sent."""
    config = replace(config, send_seconds=0.3, key_limits=KeyLimits(at_once=100))
    async with run_gateway(config, model, MemoryBus()) as gateway:
        gateway.backend.text = "y" * 200
        await gateway.backend.start()
        await gateway.ready()
        yield gateway


async def lazy_client(gateway: RunningGateway, request: bytes, receive_buffer: int = 4096) -> socket.socket:
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    lazy.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(lazy, ("127.0.0.1", gateway.port))
    await loop.sock_sendall(lazy, request)
    return lazy


# Answers that are more than the buffers of both sockets hold.
LONG_STREAM = chat(stream=True, n=100, logprobs=True, top_logprobs=20, max_tokens=200)
TOKENS = json.dumps({"prompt": "y" * 1_000_000, "return_token_strs": True}).encode()
TOKENIZE = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % len(TOKENS)
LONG_ANSWER = TOKENIZE + b"\r\n" + TOKENS


@pytest.mark.usefixtures("short_heads")
@pytest.mark.parametrize("beginning", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\n", b"\r\n\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(alone: RunningGateway, beginning: bytes) -> None:
    async with connection(alone) as (reader, writer):
        writer.write(beginning)
        assert await ended(reader)


@pytest.mark.usefixtures("short_heads")
@pytest.mark.parametrize("more", [b"\r\n", b"\n\r\n", b"GET"])
async def test_neither_is_the_next_one_once_something_has_come(alone: RunningGateway, more: bytes) -> None:
    async with connection(alone) as (reader, writer):
        writer.write(HEALTH)
        await one_answer(reader)
        writer.write(more)
        assert await ended(reader)


@pytest.mark.usefixtures("short_heads")
async def test_an_answered_request_may_not_go_on_for_ever(alone: RunningGateway) -> None:
    async with connection(alone) as (reader, writer):
        writer.write(b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert b" 405 " in await one_answer(reader)
        writer.write(b"x")
        assert await ended(reader)


@pytest.mark.usefixtures("short_heads")
async def test_a_connection_may_be_quiet_between_requests_even_if_a_body_came_behind_its_answer(
    alone: RunningGateway,
) -> None:
    async with connection(alone) as (reader, writer):
        writer.write(b"POST /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert b" 405 " in await one_answer(reader)
        writer.write(b"x" * 500)
        await asyncio.sleep(0.01)
        writer.write(b"x" * 500)
        await asyncio.sleep(0.4)
        writer.write(HEALTH)
        assert b" 200 " in await one_answer(reader)


async def test_a_client_that_leaves_is_noticed_although_it_has_sent_another_request(gateway: RunningGateway) -> None:
    gateway.backend.queueing = True
    async with connection(gateway) as (_, writer):
        writer.write(chat() + HEALTH)
        await eventually(lambda: gateway.backend.submitted)
        writer.write(HEALTH)
    await eventually(lambda: gateway.backend.aborted)
    assert gateway.service.live_requests == 0


async def test_of_requests_that_come_at_once_the_first_is_answered_and_then_the_connection_ends(
    gateway: RunningGateway,
) -> None:
    async with connection(gateway) as (reader, writer):
        writer.write(chat() + HEALTH + HEALTH)
        answer = await reader.read()
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in answer
    assert b'"finish_reason": "stop"' in answer


@pytest.mark.parametrize("request_bytes", [LONG_ANSWER, TOKENIZE + b"connection: close\r\n\r\n" + TOKENS])
async def test_an_answer_that_nobody_takes_is_thrown_away(impatient: RunningGateway, request_bytes: bytes) -> None:
    with await lazy_client(impatient, request_bytes):
        await eventually(lambda: answered(impatient, "/tokenize"))
        await eventually(lambda: not impatient.server.server_state.connections)


async def test_whoever_asks_again_before_taking_the_answer_keeps_no_slot_of_its_key(impatient: RunningGateway) -> None:
    with await lazy_client(impatient, LONG_ANSWER) as lazy:
        await eventually(lambda: answered(impatient, "/tokenize"))
        await asyncio.get_running_loop().sock_sendall(lazy, chat(n=100))
        await eventually(lambda: not impatient.server.server_state.connections)
        answer = await impatient.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 3})
        assert answer.status_code == 200


@pytest.mark.parametrize(("request_bytes", "most_bytes"), [(LONG_STREAM, 1 << 20), (LONG_ANSWER, 32 << 20)])
async def test_a_reader_of_single_bytes_takes_little_memory_and_is_cut_off(
    impatient: RunningGateway, request_bytes: bytes, most_bytes: int
) -> None:
    largest = 0
    with await lazy_client(impatient, request_bytes) as lazy:
        await eventually(lambda: impatient.server.server_state.connections)
        (watched,) = impatient.server.server_state.connections
        async with asyncio.timeout(10):
            while watched in impatient.server.server_state.connections:
                largest = max(largest, watched.transport.get_write_buffer_size())
                await asyncio.sleep(0.01)
                with suppress(OSError):
                    lazy.recv(1)
    assert 0 < largest < most_bytes


async def test_a_slow_client_that_goes_on_reading_gets_everything(impatient: RunningGateway) -> None:
    received = 0
    with await lazy_client(impatient, LONG_ANSWER, receive_buffer=1 << 18) as slow:
        await eventually(lambda: answered(impatient, "/tokenize"))
        begun = time.monotonic()
        while time.monotonic() - begun < 1.0:  # three times what it may take to take nothing
            await asyncio.sleep(0.01)
            with suppress(BlockingIOError):
                received += len(slow.recv(1 << 16))
        assert impatient.server.server_state.connections
        async with asyncio.timeout(10):
            while piece := await asyncio.get_running_loop().sock_recv(slow, 1 << 20):
                received += len(piece)
                if piece.endswith(b"]}"):
                    break
    assert received > 6_000_000


def answered(gateway: RunningGateway, route: str) -> bool:
    return f'route="{route}"' in gateway.service.metrics.render()[0].decode()


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:  # as good: it was aborted
        return True
