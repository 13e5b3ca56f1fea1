"""The clients of `./distserve chaos`, before a server that says what it is told to."""

import asyncio
import json

import pytest

from cli.chaos.calls import Call
from cli.chaos.load import Load
from cli.held_ports import hold_port, number_of

EVENT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = {"error": {"message": "Come later", "type": "service_unavailable", "param": None, "code": "unavailable"}}
CALL = Call("/v1/completions", {"model": "demo"})


def response(status: str, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n".encode() + body


WHOLE = response("200 OK", EVENT + DONE)
BROKEN = response("200 OK", EVENT, length=1000)
REFUSED = response("503 Service Unavailable", json.dumps(ERROR).encode(), "retry-after: 1\r\n")


async def wrong_with(*answers: bytes) -> list[str]:
    """What the client of one call has to say; the server gives it these answers in turn."""
    left = iter(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(left))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return await Load({"gateway": url}, [CALL], streams=1).learn(1)


@pytest.mark.parametrize(
    ("answer", "noted"),
    [
        (BROKEN, "gateway broken after 1 events"),
        (REFUSED, "gateway refused after 0 events"),
        (b"", "gateway unanswered after 0 events"),
    ],
)
async def test_every_trouble_is_noted_before_the_client_comes_again(answer: bytes, noted: str):
    (found,) = await wrong_with(answer, WHOLE)
    assert noted in found


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (response("503 Service Unavailable", json.dumps(ERROR).encode()), "no Retry-After"),
        (response("503 Service Unavailable", b"later", "retry-after: 1\r\n"), "in no form known"),
        (response("503 Service Unavailable", b'{"error": "later"}', "retry-after: 1\r\n"), "in no form known"),
        (response("500 Internal Server Error", json.dumps(ERROR).encode()), "500"),
        (response("200 OK", EVENT), "without [DONE] after 1 events"),
    ],
)
async def test_what_no_client_should_ever_get_ends_the_call(answer: bytes, what: str):
    (found,) = await wrong_with(answer)
    assert what in found


async def test_nothing_is_wrong_with_a_whole_answer():
    assert await wrong_with(WHOLE) == []


async def test_a_load_that_is_cancelled_ends_at_once():
    """As Ctrl-C does in the middle of a run, when no gateway is there any more."""
    with hold_port("127.0.0.1", 0) as nobody:
        load = Load({"gateway": f"http://127.0.0.1:{number_of(nobody)}"}, [CALL], streams=4)
        running = asyncio.create_task(load.run(600))
        async with asyncio.timeout(10):
            while len(load.stories) < 4:  # noqa: ASYNC110  (its four clients have begun)
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    assert not load.leave(4, pick=0), "nobody is left"
