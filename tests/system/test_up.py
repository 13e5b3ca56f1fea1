"""`./distserve up` with everything real: NATS, four services, UCX, the demo model."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.running_up import Up, up

__all__ = ["up"]


def stream(url: str, max_tokens: int) -> Iterator[dict]:
    """The events of a streamed answer, parsed; ends with [DONE]."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream broke off without [DONE]")


def abandoned_segments() -> set[str]:
    """Shared memory that is there and that no living process has mapped: others may use some meanwhile."""
    there, mapped = set(os.listdir("/dev/shm")), ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped += maps.read_text()
    return {name for name in there if f"/dev/shm/{name}" not in mapped}


@pytest.mark.parametrize("options", [(), ("--prefill", "2", "--decode", "2"), ("--colocated",)])
def test_it_serves_a_streamed_answer(up: Callable[..., Up], options: tuple[str, ...]):
    running = up(*options)
    events = list(stream(running.url, max_tokens=24))
    assert events[-1]["usage"]["completion_tokens"] == 24
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert len(text) > 24
    assert running.stop() == 0, running.output
    assert not [log for log in running.logs.iterdir() if "bus_permission_violation" in log.read_text()]


def test_ctrl_c_tells_a_running_stream_and_leaves_nothing_behind(up: Callable[..., Up]):
    abandoned = abandoned_segments()
    running = up("--shutdown-timeout", "0.5")
    events: list[dict] = []
    reader = threading.Thread(target=lambda: events.extend(stream(running.url, max_tokens=3500)))
    reader.start()
    children = running.children()
    assert len(children) == 5
    while not events:
        time.sleep(0.01)
    assert running.stop() == 0, running.output
    reader.join(5)
    assert not reader.is_alive()
    assert "error" in events[-1], "the client is told why its answer ends early"
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert abandoned_segments() <= abandoned
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger, a listener must not
        again.bind(("127.0.0.1", running.port))
