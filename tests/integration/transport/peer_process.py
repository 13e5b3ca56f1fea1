"""A peer in a process of its own: sends when told to, over one line of JSON each way. `python -m` this module is the peer."""

import asyncio
import json
import os
import signal
import sys
from typing import Any, Self

import numpy as np

from shared.specs.ids import InstanceId
from shared.transport.interface import TransportError
from shared.transport.ucx import UcxTransport

NAME = InstanceId("prefill-0000beef")
READY_SECONDS = 20.0


class PeerProcess:
    """The parent's side. As a context manager it leaves no process behind."""

    def __init__(self) -> None:
        self.name = NAME
        self.address = b""
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        self.address = bytes.fromhex(await self._answer())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), READY_SECONDS)

    async def tell_to_send(self, address: bytes, transfer: int, pieces: int, piece_bytes: int) -> None:
        """It sends `pieces` times the same memory, whose byte i is i % 251 + 1. Does not wait for the end."""
        assert self._process is not None and self._process.stdin is not None
        order = {"address": address.hex(), "transfer": transfer, "pieces": pieces, "piece_bytes": piece_bytes}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def outcome(self) -> str:
        """Of the oldest send that has not been asked about: "sent", or what went wrong."""
        return await self._answer()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def _answer(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), READY_SECONDS)
        return json.loads(line)


def content(piece_bytes: int) -> np.ndarray:
    return np.resize(np.arange(1, 252, dtype=np.uint8), piece_bytes)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    async with UcxTransport() as transport:
        _say(transport.address.hex())
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _say(await _send(transport, json.loads(line)))


async def _send(transport: UcxTransport, order: dict[str, Any]) -> str:
    memory = content(order["piece_bytes"])
    try:
        await transport.send(
            InstanceId("decode-00000001"),
            bytes.fromhex(order["address"]),
            order["transfer"],
            [memory] * order["pieces"],
            timeout_seconds=10.0,
        )
    except TransportError as error:
        return str(error)
    return "sent"


def _say(answer: str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve())
