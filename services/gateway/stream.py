"""An answer on its way to its client: as server-sent events, or whole. A client that leaves ends its requests."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Protocol

from prometheus_client import Histogram
from starlette.types import Receive, Send

from services.gateway.answer import Answer
from services.gateway.errors import client_left
from services.gateway.formats import Form
from services.gateway.text import Piece

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


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
        await answer.bell.wait()


class Connection(Protocol):
    """A client's, beyond what ASGI offers."""

    def write_now(self, data: bytes) -> bool:
        """More of the body. False if it would have to wait: nothing is written then."""
        ...

    def one_write(self) -> AbstractContextManager[None]:
        """What is sent within leaves at its end, in one write: each costs as much as all else that is done for it."""
        ...


class EventStream:
    """Writes an answer's text as it comes: what waits for the client goes out in one write.

    Text is written from where it comes, without waking the task that answers: that would cost as much as all else.

    A client that does not read stops the writing, never the taking in of tokens; after a while its connection is cut
    (`protocol.py`). One slow timer sees to the keep-alives: a timeout around every wait would cost as much as all else
    that is done for a token.
    """

    def __init__(
        self, send: Send, connection: Connection, keep_alive_seconds: float, gaps: Histogram, include_usage: bool
    ) -> None:
        """A comment is sent when it was quiet for `keep_alive_seconds`; `gaps` observes those between two writes."""
        self._send, self._connection, self._gaps = send, connection, gaps
        self._keep_alive_seconds = keep_alive_seconds
        self._include_usage = include_usage
        self._unsent = b""
        self._text_at: float | None = None
        self._sending = False
        self._sent_at = time.monotonic()
        self._quiet = False

    async def write(self, answer: Answer, form: Form) -> None:
        """Until the answer has ended, one way or the other."""
        self._look_after_later(answer)
        try:
            await self._open(answer, form)
            answer.bell.call(lambda: self._write_now(answer, form))
            while True:
                self._unsent += self._new_text(answer, form)
                if answer.over:
                    break
                data, self._unsent = self._unsent or (KEEP_ALIVE if self._quiet else b""), b""
                if data:
                    await self._write(data, more=True)
                await answer.bell.wait()
            await self._write(self._unsent + self._ending(answer, form), more=False)
        finally:
            answer.bell.call(None)
            self._timer.cancel()

    async def _open(self, answer: Answer, form: Form) -> None:
        with self._connection.one_write():
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            opening = b"".join(form.opening(choice) for choice in answer.choices) + self._new_text(answer, form)
            if opening:
                await self._write(opening, more=True)

    def _write_now(self, answer: Answer, form: Form) -> bool:
        """What is new, unless there is more to do than to write it, or the client keeps us waiting."""
        if self._sending:
            return False
        text = self._unsent + self._new_text(answer, form)
        if answer.over or not self._connection.write_now(text):
            self._unsent = text
            return False
        if text:
            self._unsent = b""
            self._sent_at, self._quiet = time.monotonic(), False
        return True

    def _new_text(self, answer: Answer, form: Form) -> bytes:
        taken = answer.take()
        if taken:
            now = time.monotonic()
            if self._text_at is not None:
                self._gaps.observe(now - self._text_at)
            self._text_at = now
        return b"".join(form.chunk(choice, piece) for choice, piece in taken)

    def _ending(self, answer: Answer, form: Form) -> bytes:
        if answer.error is not None:
            return b"data: " + answer.error.body() + b"\n\n" + DONE
        return (form.usage(answer.usage()) if self._include_usage else b"") + DONE

    async def _write(self, data: bytes, *, more: bool) -> None:
        self._sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending, self._sent_at, self._quiet = False, time.monotonic(), False

    def _look_after_later(self, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._keep_alive_seconds / 4, self._look_after, answer)

    def _look_after(self, answer: Answer) -> None:
        if not self._sending and time.monotonic() - self._sent_at >= self._keep_alive_seconds:
            self._quiet = True
            answer.bell.wake()
        self._look_after_later(answer)
