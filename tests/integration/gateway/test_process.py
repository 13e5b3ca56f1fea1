"""`python -m services.gateway.main` on a real NATS server: how it starts, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from services.gateway.model import ServedModel
from shared.bus.nats import NatsBus
from shared.specs.ids import role_of
from shared.specs.settings import MISCONFIGURED
from tests.integration.gateway.scripted_backend import INSTANCES, MODEL, ScriptedBackend
from tests.nats_server import NatsServer

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
START_SECONDS = 15.0


class GatewayProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.url = ""

    async def serving(self) -> None:
        """Wait for the log line that names the port."""
        assert self._process.stderr is not None
        async with asyncio.timeout(START_SECONDS):
            while '"serving"' not in (line := (await self._process.stderr.readline()).decode()):
                assert line, "it ended instead"
        self.url = f"http://127.0.0.1:{json.loads(line)['port']}"

    def signal(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> tuple[int, str]:
        async with asyncio.timeout(START_SECONDS):
            _, errors = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, errors.decode()


@asynccontextmanager
async def gateway_process(folder: Path, nats_url: str, **settings: str) -> AsyncIterator[GatewayProcess]:
    environment = os.environ | {
        "NATS_URL": nats_url,
        "DISTSERVE_MODEL": str(folder),
        "DISTSERVE_SERVED_MODEL_NAME": MODEL,
        "DISTSERVE_PORT": "0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.gateway.main"),
        env=environment | {f"DISTSERVE_{name}": value for name, value in settings.items()},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield GatewayProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
async def backend(nats_server: NatsServer, model: ServedModel) -> AsyncIterator[ScriptedBackend]:
    buses = {name: await NatsBus.connect(nats_server.url, name=name, role=role_of(name)) for name in INSTANCES}
    backend = ScriptedBackend(buses, model.tokenizer)
    backend.text, backend.token_seconds = "x" * 60, 0.015
    await backend.start()
    yield backend
    await backend.close()


async def stream_once_ready(gateway: GatewayProcess, reading: asyncio.Event) -> str:
    """A streamed answer; `reading` is set when its first text is there."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=20.0, trust_env=False) as client:
        async with asyncio.timeout(5):
            while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        received = ""
        async with client.stream("POST", "/v1/chat/completions", json=BODY) as response:
            async for text in response.aiter_text():
                received += text
                if '"content": "x' in received:
                    reading.set()
    return received


async def test_sigterm_lets_a_running_stream_finish(
    backend: ScriptedBackend, nats_server: NatsServer, model_folder: Path
) -> None:
    async with gateway_process(model_folder, nats_server.url) as gateway:
        await gateway.serving()
        reading = asyncio.Event()
        stream = asyncio.create_task(stream_once_ready(gateway, reading))
        await reading.wait()
        gateway.signal()
        received = await stream
        assert received.endswith("data: [DONE]\n\n")
        assert '"finish_reason": "stop"' in received
        assert "error" not in received
        assert (await gateway.ended())[0] == 0


@pytest.mark.parametrize("signals", [1, 2])
async def test_what_cannot_finish_in_time_or_is_told_twice_to_end_is_told_and_stopped(
    backend: ScriptedBackend, nats_server: NatsServer, model_folder: Path, signals: int
) -> None:
    drain_seconds = "0.2" if signals == 1 else "60"
    async with gateway_process(model_folder, nats_server.url, DRAIN_TIMEOUT=drain_seconds) as gateway:
        await gateway.serving()
        reading = asyncio.Event()
        stream = asyncio.create_task(stream_once_ready(gateway, reading))
        await reading.wait()
        for _ in range(signals):
            gateway.signal()
            await asyncio.sleep(0.1)
        *_, error, done, _ = (await stream).split("\n\n")
        assert "shutting down" in error
        assert done == "data: [DONE]"
        assert (await gateway.ended())[0] == 0
    assert len(backend.aborted) >= 1
    assert backend.running == 0


async def test_what_keeps_it_from_starting_is_said_in_one_line(model_folder: Path, nats_server: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with gateway_process(model_folder, nats_server.url, PORT=port) as gateway:
            status, errors = await gateway.ended()
    assert status == MISCONFIGURED
    assert re.fullmatch(r"gateway: cannot listen on .*DISTSERVE_PORT=\d+: Address already in use\n", errors)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"nats://127.0.0.1:{nobody.getsockname()[1]}"
    async with gateway_process(model_folder, url) as gateway:
        status, errors = await gateway.ended()
    assert status == 1
    assert errors.startswith("gateway: ")
    assert errors.count("\n") == 1
