"""The processes that bench_control measures, and the clients that load them."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.nats_server import NatsServer
from tests.tiny_tokenizer import END, write_tokenizer

LAST_CHUNK = b"0\r\n\r\n"
LETTER = "Z"  # the text of every token; in nothing else that the gateway sends
PROMPT = "the quick brown fox jumps over the lazy dog, " * 4
TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "eos_token_id": 0,
}
SETTINGS = {
    "DISTSERVE_SERVED_MODEL_NAME": "bench",
    "DISTSERVE_LOG_LEVEL": "info",
    "DISTSERVE_TRACE_DIR": "",
    "DISTSERVE_PORT": "0",
    "DISTSERVE_MAX_BATCH": "1024",
    "DISTSERVE_DECODE_QUEUE_REQUESTS": "1024",
    "DISTSERVE_PREFILL_QUEUE_REQUESTS": "1024",
    "DISTSERVE_PREFILL_QUEUE_TOKENS": "200000",
    "DISTSERVE_PREFILL_BATCH_TOKENS": "8192",
}
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
)


@dataclass
class Stack:
    """A NATS server and whatever processes were started beside it."""

    folder: Path
    nats: NatsServer
    token: int  # that LETTER is
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)
    port: int = 0  # of the gateway

    async def start(self, name: str, *command: str, settings: Mapping[str, str] = {}) -> None:
        """`python -m` what is in `command`. A gateway is waited for."""
        environment = SETTINGS | {"NATS_URL": self.nats.url, "DISTSERVE_MODEL": str(self.folder)} | dict(settings)
        environment["DISTSERVE_JOURNAL_DIR"] = str(self.folder / "journal")
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *command, env=os.environ | environment, stderr=log
            )
        self.processes[name] = process
        if name == "gateway":
            self.port = await self._port_of(process)

    async def _port_of(self, gateway: asyncio.subprocess.Process) -> int:
        while gateway.returncode is None:
            for line in (self.folder / "gateway.log").read_text().splitlines():
                if '"serving"' in line:
                    return json.loads(line)["port"]
            await asyncio.sleep(0.05)
        raise SystemExit((self.folder / "gateway.log").read_text())

    async def ready(self) -> None:
        """Until the gateway finds nothing missing."""
        async with asyncio.timeout(90):
            while b" 200 " not in await self._get("/ready"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _get(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    def cpu_seconds(self) -> dict[str, float]:
        """Spent so far, by process; this one is the clients'."""
        pids = {name: process.pid for name, process in self.processes.items()}
        return {
            name: _cpu_seconds(pid) for name, pid in (pids | {"nats": self.nats.pid, "clients": os.getpid()}).items()
        }

    async def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextmanager
def model_folder() -> Iterator[tuple[Path, int]]:
    """A model without weights, and the token that is LETTER."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        tokenizer_config = {"eos_token": {"content": END}, "chat_template": TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        yield folder, json.loads(file.read_text())["model"]["vocab"][LETTER]


@asynccontextmanager
async def running_stack() -> AsyncIterator[Stack]:
    with model_folder() as (folder, token):
        nats = NatsServer(folder)
        nats.start()
        stack = Stack(folder, nats, token)
        try:
            yield stack
        finally:
            await stack.stop()
            nats.stop()


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Call:
    """One answer: when it was asked for, and when each of its tokens was here."""

    seed: int
    asked_at: float
    read_at: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection. Reads as little of an answer as tells its tokens and its end."""

    def __init__(self) -> None:
        self.call = Call(0, 0.0)
        self._tail = b""
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None

    @classmethod
    async def connect(cls, port: int) -> "Client":
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        letters = data.count(b"Z")
        if letters:
            self.call.read_at += [time.monotonic()] * letters
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK and self._done is not None and not self._done.done():
            self._done.set_result(None)
        elif b" 429 " in data or b'"error"' in data:
            raise RuntimeError(data.decode())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("the gateway hung up"))

    async def ask(self, seed: int, tokens: int) -> Call:
        body = json.dumps(
            {
                "model": "bench",
                "messages": [{"role": "user", "content": PROMPT}],
                "max_tokens": tokens,
                "seed": seed,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
        )
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self.call = Call(seed, time.monotonic())
        self._transport.write((HEAD.format(len(body)) + body).encode())
        await self._done
        return self.call

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
