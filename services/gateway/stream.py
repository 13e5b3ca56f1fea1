"""An answer on its way to its client: as server-sent events, or whole. A client that leaves ends its requests."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Histogram
from starlette.types import Receive, Send

from services.gateway.answer import Answer
from services.gateway.errors import client_left, client_too_slow
from services.gateway.formats import Form
from services.gateway.text import Piece

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class SlowClient(Exception):
    """The client did not read for so long that its connection should be cut."""


@asynccontextmanager
async def given_up_when_client_leaves(answer: Answer, receive: Receive) -> AsyncIterator[None]:
    """Around everything that is done for an answer. Whatever ends it, no request is left running."""
    watch = asyncio.create_task(_watch(answer, receive))
    try:
        yield
    finally:
        watch.cancel()
        answer.give_up(client_left(), "aborted")


async def _watch(answer: Answer, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.give_up(client_left(), "aborted")


async def collect(answer: Answer, form: Form) -> bytes:
    """The body of the whole answer; ApiError if it cannot be had."""
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in answer.choices}
    while True:
        for choice, piece in answer.take():
            pieces[choice.index].append(piece)
        if answer.error is not None:
            raise answer.error
        if answer.done:
            return form.whole(answer, [(choice, pieces[choice.index]) for choice in answer.choices])
        await answer.wait()


@dataclass(frozen=True, slots=True)
class Pace:
    send_seconds: float  # for a client to take what is sent
    keep_alive_seconds: float  # a comment is sent on a stream that was quiet for so long


class EventStream:
    """Writes an answer's text as it comes: what waits for the client goes out in one write.

    A client that does not read stops the writing, never the taking in of tokens; after a while it is given up.
    """

    def __init__(self, send: Send, pace: Pace, gaps: Histogram, include_usage: bool) -> None:
        """`gaps` observes the seconds between two writes of text."""
        self._send, self._pace, self._gaps, self._include_usage = send, pace, gaps, include_usage
        self._text_at: float | None = None

    async def write(self, answer: Answer, form: Form) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        data = b"".join(form.opening(choice) for choice in answer.choices)
        while True:
            taken = answer.take()
            if taken:
                self._observe_gap(time.monotonic())
            data += b"".join(form.chunk(choice, piece) for choice, piece in taken)
            if answer.error is not None:
                await self._write(answer, data + b"data: " + answer.error.body() + b"\n\n" + DONE, last=True)
                return
            if answer.done:
                usage = form.usage(answer.usage()) if self._include_usage else b""
                await self._write(answer, data + usage + DONE, last=True)
                return
            if data:
                await self._write(answer, data)
            data = await self._pause(answer)

    def _observe_gap(self, now: float) -> None:
        if self._text_at is not None:
            self._gaps.observe(now - self._text_at)
        self._text_at = now

    async def _pause(self, answer: Answer) -> bytes:
        """Wait for news; a comment to be written if there were none for long."""
        try:
            async with asyncio.timeout(self._pace.keep_alive_seconds):
                await answer.wait()
        except TimeoutError:
            return KEEP_ALIVE
        return b""

    async def _write(self, answer: Answer, data: bytes, last: bool = False) -> None:
        try:
            async with asyncio.timeout(self._pace.send_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        except TimeoutError:
            answer.give_up(client_too_slow(), "aborted")
            raise SlowClient from None
