"""A peer in a process of its own that sends when told to: lines of JSON both ways. As main module this is the peer."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from shared.specs.ids import InstanceId
from shared.transport.interface import Buffer, TransportError
from shared.transport.transfer import Message
from shared.transport.ucx import UcxTransport

NAME = InstanceId("prefill-0000beef")
PULLER = InstanceId("decode-00000001")
ANSWER_SECONDS = 30.0
HESITATION_SECONDS = 0.1


class PeerProcess:
    """The parent's side. As a context manager it leaves no process behind.

    `device`: "cpu", or the number of a GPU. `manner`: "hesitant" is a peer that sends the outline of a transfer, a
    moment later the rest, and then hangs.
    """

    def __init__(self, device: str = "cpu", manner: str = "") -> None:
        self.name = NAME
        self.address = b""
        self._arguments = (device, manner)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.address = bytes.fromhex(await self.outcome())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self._process.stdin.close()
        await asyncio.wait_for(self._process.wait(), ANSWER_SECONDS)

    async def tell_to_send(
        self, address: bytes, transfer: int, pieces: int, piece_bytes: int, distinct_pieces: int = 1
    ) -> None:
        """It sends pieces of `content(distinct_pieces * piece_bytes)`, again and again. Does not wait for the end."""
        assert self._process is not None
        assert self._process.stdin is not None
        order = [address.hex(), transfer, pieces, piece_bytes, distinct_pieces]
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def outcome(self) -> str:
        """Of the oldest send that has not been asked about: "sent", or what went wrong."""
        assert self._process is not None
        assert self._process.stdout is not None
        return json.loads(await asyncio.wait_for(self._process.stdout.readline(), ANSWER_SECONDS))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def content(size: int) -> np.ndarray:
    """uint8 [size], no byte 0."""
    return np.resize(np.arange(1, 252, dtype=np.uint8), size)


class HesitantUcx(UcxTransport):
    """Few messages, so that all are posted at once."""

    def _posts(
        self, post: Callable[[Any, int], Message], transfer: int, promised: np.ndarray, arrays: list[Any]
    ) -> Iterator[Message]:
        for index, message in enumerate(super()._posts(post, transfer, promised, arrays)):
            yield message
            if index == 0:
                time.sleep(HESITATION_SECONDS)
        time.sleep(HESITATION_SECONDS)  # for the progress thread to put them on the wire
        os.kill(os.getpid(), signal.SIGSTOP)


async def serve(device: str, manner: str) -> None:
    loop = asyncio.get_running_loop()
    memory = place(content(1), device)
    kind = HesitantUcx if manner == "hesitant" else UcxTransport
    async with kind(None if device == "cpu" else int(device)) as transport:
        _say(transport.address.hex())
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            address, transfer, pieces, piece_bytes, distinct_pieces = json.loads(line)
            if len(memory) != distinct_pieces * piece_bytes:
                memory = place(content(distinct_pieces * piece_bytes), device)
            distinct = [memory[i * piece_bytes : (i + 1) * piece_bytes] for i in range(distinct_pieces)]
            buffers = [distinct[i % distinct_pieces] for i in range(pieces)]
            _say(await _send(transport, bytes.fromhex(address), transfer, buffers))


def place(data: np.ndarray, device: str) -> Any:
    """The same bytes in the memory of the device."""
    if device == "cpu":
        return data
    import torch

    tensor = torch.from_numpy(data).to(f"cuda:{device}")
    torch.cuda.synchronize()
    return tensor


async def _send(transport: UcxTransport, address: bytes, transfer: int, buffers: list[Buffer]) -> str:
    try:
        await transport.send(PULLER, address, transfer, buffers, timeout_seconds=10.0)
    except TransportError as error:
        return str(error)
    return "sent"


def _say(answer: str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
