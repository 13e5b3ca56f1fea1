"""Processes of a running installation are killed in the middle of their work, and no client notices."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.system.running_up import Up, up

__all__ = ["up"]

STREAMS = 16
TOKENS = 48
SERVED_SECONDS = 60.0


def call(number: int) -> dict:
    """Half of them greedy, half drawn with a seed."""
    sampling = {"temperature": 0} if number % 2 == 0 else {"temperature": 1.0, "top_p": 0.95, "seed": 1000 + number}
    return sampling | {
        "model": "demo",
        "prompt": f"def answer_{number}(question):\n" + f"    # case {number}\n" * (number + 1),
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }


class Streams:
    """Concurrent answers as they grow."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.texts = [""] * STREAMS
        self.events = [0] * STREAMS

    async def read_all(self) -> list[str]:
        limits = httpx.Limits(max_connections=STREAMS)
        async with httpx.AsyncClient(base_url=self._url, timeout=SERVED_SECONDS, limits=limits) as client:
            await asyncio.gather(*(self._read(client, number) for number in range(STREAMS)))
        return self.texts

    async def _read(self, client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", "/v1/completions", json=call(number)) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    self.texts[number] += event["choices"][0]["text"]
                    self.events[number] += 1

    async def reach(self, events: int) -> None:
        """Wait until every stream has brought so many."""
        async with asyncio.timeout(SERVED_SECONDS):
            while min(self.events) < events:  # noqa: ASYNC110  (sixteen of them)
                await asyncio.sleep(0.01)


def kill_one(up: Up, role: str) -> None:
    """SIGKILL, to one of the processes that this `up` has started."""
    for pid in sorted(up.children()):
        if f"services.{role}.main".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"there is no {role} process")


async def test_no_client_notices_that_a_decode_and_a_prefill_process_were_killed(up: Callable[..., Up]):
    running = await asyncio.to_thread(up, "--prefill", "2", "--decode", "2")
    expected = await Streams(running.url).read_all()
    streams = Streams(running.url)
    reading = asyncio.create_task(streams.read_all())
    await streams.reach(5)
    kill_one(running, "decode")
    kill_one(running, "prefill")
    assert await reading == expected
    assert await asyncio.to_thread(running.stop) == 0, running.output
