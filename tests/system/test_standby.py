"""Two schedulers: the one that leads is killed, then the next one is stopped for a while. No client notices."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.running_up import Up, up
from tests.system.test_killed_parts import Streams

__all__ = ["up"]

pytestmark = pytest.mark.timeout(150)

STOPPED_SECONDS = 4.0  # longer than the lease


def terms(up: Up) -> dict[str, int]:
    """By log file: in which term each scheduler leads or, if it has been deposed or has never led, 0."""
    found = {}
    for log in up.logs.glob("scheduler-*.log"):
        lines = [json.loads(line) for line in log.read_text().splitlines() if '"leadership_changed"' in line]
        found[log.stem] = lines[-1]["term"] if lines else 0
    return found


def leader(up: Up) -> tuple[str, int]:
    """The scheduler with the latest term: its name in the logs, and its process."""
    name = max(terms(up).items(), key=lambda one: one[1])[0]
    log = up.logs / f"{name}.log"
    for pid in up.children():
        if Path(f"/proc/{pid}/fd/1").resolve() == log:
            return name, pid
    raise AssertionError(f"{name} does not run")


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not fact():  # noqa: ASYNC110  (another process's log)
            await asyncio.sleep(0.05)


async def test_no_client_notices_that_the_leading_scheduler_was_killed_or_stopped(up: Callable[..., Up]):
    running = await asyncio.to_thread(up, "--schedulers", "2")
    expected = await Streams(running.url).read_all()

    running_streams = Streams(running.url)
    reading = asyncio.create_task(running_streams.read_all())
    await running_streams.reach(2)
    _, killed = leader(running)
    os.kill(killed, signal.SIGKILL)
    assert await Streams(running.url).read_all() == expected, "new requests wait for the next leader"
    assert await reading == expected, "running streams go on"

    await until(lambda: len(running.children()) == 6)  # the killed one is back; either may lead now
    stopped, pid = leader(running)
    assert pid != killed
    running_streams = Streams(running.url)
    reading = asyncio.create_task(running_streams.read_all())
    await running_streams.reach(2)
    os.kill(pid, signal.SIGSTOP)
    try:
        late = asyncio.create_task(Streams(running.url).read_all())
        await asyncio.sleep(STOPPED_SECONDS)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await late == expected
    assert await reading == expected
    await until(lambda: terms(running)[stopped] == 0)
    assert leader(running)[0] != stopped
    assert await asyncio.to_thread(running.stop) == 0, running.output
