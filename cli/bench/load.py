"""Open-loop load: every request leaves when it is due, whatever became of those before it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from cli.bench.calls import Answer, Call
from cli.bench.events import CompletionEvents
from cli.bench.server import Server

LEAD_SECONDS = 0.2  # from the start to the first request
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0  # for a whole answer
TICK_SECONDS = 0.5
JSON = {"content-type": "application/json"}


@dataclass(slots=True)
class Run:
    """A run as it goes on, and afterwards."""

    name: str  # in the x-request-id of all its requests
    answers: list[Answer]
    started_at: float  # Unix time of second 0
    seconds: float = 0.0  # since then
    stopped: bool = False  # before all had an answer
    cpu_seconds: float = 0.0  # of this process, since second 0

    @property
    def counted(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.call.warms_up]

    @property
    def pieces(self) -> int:
        return sum(len(answer.gaps) + (answer.first is not None) for answer in self.answers)


async def run_load(server: Server, calls: Sequence[Call], name: str, watch: Callable[[Run], bool]) -> Run:
    """Send `calls` and wait for their answers. `watch` sees the run now and then; the run ends when it returns True."""
    bodies = [server.body(number, call.prompt_tokens, call.output_tokens) for number, call in enumerate(calls)]
    cpu_before = time.process_time()
    run = Run(name, [Answer(call) for call in calls], time.time() + LEAD_SECONDS)
    zero = time.perf_counter() + LEAD_SECONDS
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=server.headers | JSON, timeout=timeout, connector=connector) as session:
        client = _Client(session, f"{server.url}/v1/completions", name, zero)
        sending = asyncio.create_task(client.send_all(run.answers, bodies))
        while not sending.done() and not run.stopped:
            await asyncio.wait({sending}, timeout=TICK_SECONDS)
            run.seconds, run.cpu_seconds = time.perf_counter() - zero, time.process_time() - cpu_before
            run.stopped = watch(run) and not sending.done()
        if run.stopped:
            sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
    return run


class _Client:
    def __init__(self, session: aiohttp.ClientSession, url: str, name: str, zero: float) -> None:
        self._session, self._url, self._name, self._zero = session, url, name, zero

    async def send_all(self, answers: Sequence[Answer], bodies: Sequence[bytes]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, (answer, body) in enumerate(zip(answers, bodies, strict=True)):
                wait = answer.call.due - self._now()
                if wait > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(self._send(answer, body, number))

    async def _send(self, answer: Answer, body: bytes, number: int) -> None:
        answer.sent = self._now()
        try:
            headers = {"x-request-id": f"{self._name}-{number}"}
            async with self._session.post(self._url, data=body, headers=headers) as response:
                answer.status = response.status
                if response.status != 200:
                    answer.retry_after = _seconds(response.headers.get("retry-after", ""))
                    answer.error = f"{response.status} {(await response.text())[:200]}"
                else:
                    await self._read(answer, response)
        except TimeoutError:
            answer.error = f"no end within {ANSWER_SECONDS:g} s"
        except aiohttp.ClientError as error:
            answer.error = str(error) or type(error).__name__

    async def _read(self, answer: Answer, response: aiohttp.ClientResponse) -> None:
        events = CompletionEvents()
        async for data in response.content.iter_any():
            if events.feed(data):
                now = self._now()
                if answer.last is None:
                    answer.first = now
                else:
                    answer.gaps.append(now - answer.last)
                answer.last = now
        if events.usage is not None:
            answer.prompt_tokens = events.usage.get("prompt_tokens", 0)
            answer.output_tokens = events.usage.get("completion_tokens", 0)
        answer.error = events.error or ("" if events.done and events.usage else "the stream broke off")
        answer.ended = not answer.error

    def _now(self) -> float:
        return time.perf_counter() - self._zero


def _seconds(retry_after: str) -> float:
    """0 if it is a date, or missing."""
    return float(retry_after) if retry_after.isdigit() else 0.0
