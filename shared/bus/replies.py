"""Replies to the requests of one connection: one subscription for all, and a future for each that is waited for."""

import asyncio
import itertools

import nats.errors
from nats.aio.msg import Msg

NO_RESPONDERS = "503"


class Replies:
    def __init__(self, inbox: str) -> None:
        """`inbox`: a subject of this connection's own, which nobody else can guess."""
        self.subject = f"{inbox}.*"
        self._inbox = inbox
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    def expect(self) -> str:
        """Where the reply to one more request shall go. `wait` for it, or `forget` it."""
        reply = f"{self._inbox}.{next(self._numbers):x}"
        self._waiting[reply] = asyncio.get_running_loop().create_future()
        return reply

    async def wait(self, reply: str, timeout_seconds: float) -> Msg:
        """nats.errors.NoRespondersError, or nats.errors.TimeoutError."""
        waiting = self._waiting[reply]
        timer = asyncio.get_running_loop().call_later(timeout_seconds, _time_out, waiting)
        try:
            message = await waiting
        finally:
            timer.cancel()
            self.forget(reply)
        if message.headers and message.headers.get("Status") == NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message

    def forget(self, reply: str) -> None:
        self._waiting.pop(reply, None)

    def receive(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)


def _time_out(waiting: "asyncio.Future[Msg]") -> None:
    if not waiting.done():
        waiting.set_exception(nats.errors.TimeoutError())
