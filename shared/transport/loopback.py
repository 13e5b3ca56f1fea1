"""The same promises within one process: the event loop copies. For tests of everything above the transport."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np

from shared.specs.ids import InstanceId
from shared.transport.address import LOOPBACK, pack_address, this_machine, unpack_address
from shared.transport.interface import Ask, BadBuffer, Buffer, TransferFailed, TransferReport
from shared.transport.pieces import SizesDisagree, check_outline, check_pieces, outline

Fault = Literal["silent", "dies", "garbles"]


@dataclass(slots=True, eq=False)
class _Awaited:
    """A receive that has been posted. Taken out of the hub, it is written to no more."""

    peer: InstanceId
    pieces: Sequence[memoryview]
    outline: np.ndarray
    done: asyncio.Future[None]
    begun_at: float = 0.0  # time.perf_counter()
    ended_at: float = 0.0


@dataclass(slots=True)
class LoopbackHub:
    """What connects the transports of one process. `faults`: how the sends of an instance misbehave from now on."""

    faults: dict[InstanceId, Fault] = field(default_factory=dict)
    awaited: dict[tuple[bytes, int], _Awaited] = field(default_factory=dict)

    def lose(self, instance: InstanceId) -> None:
        """The instance is dead: nobody gets anything from it any more."""
        for waiting in self.awaited.values():
            if waiting.peer == instance and not waiting.done.done():
                waiting.done.set_exception(ConnectionResetError(f"{instance} is dead"))


class LoopbackTransport:
    def __init__(self, hub: LoopbackHub, instance: InstanceId) -> None:
        self._hub, self._instance = hub, instance
        self.address = pack_address(LOOPBACK, this_machine(), instance.encode())
        self._transfers = itertools.count(1)
        self._peers: set[InstanceId] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def receive(
        self, peer: InstanceId, address: bytes, buffers: Sequence[Buffer], ask: Ask, timeout_seconds: float
    ) -> TransferReport:
        pieces = self._meet(peer, address, buffers, writable=True)
        expected, transfer = outline(pieces), next(self._transfers)
        waiting = _Awaited(peer, pieces, expected, asyncio.get_running_loop().create_future())
        waiting.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, awaited or not
        self._hub.awaited[self.address, transfer] = waiting
        size, asked = int(expected[1]), time.perf_counter()
        deadline = asyncio.timeout(timeout_seconds)
        try:
            async with deadline:
                await ask(self.address, transfer)
                await waiting.done
        except Exception as error:
            trouble = waiting.done.exception() if waiting.done.done() and not waiting.done.cancelled() else None
            if trouble is not None:
                retryable = not isinstance(trouble, SizesDisagree)
                raise TransferFailed(peer, str(trouble), retryable=retryable, size=size) from error
            if deadline.expired():
                raise TransferFailed(peer, f"not done after {timeout_seconds} s", size=size) from error
            raise
        finally:
            del self._hub.awaited[self.address, transfer]
        return TransferReport(
            bytes=size,
            wait_seconds=waiting.begun_at - asked,
            move_seconds=waiting.ended_at - waiting.begun_at,
            transport="loopback",
        )

    async def send(
        self, peer: InstanceId, address: bytes, transfer: int, buffers: Sequence[Buffer], timeout_seconds: float
    ) -> None:
        pieces = self._meet(peer, address, buffers, writable=False)
        promised = outline(pieces)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._copy(pieces, promised, (address, transfer))
        except (TimeoutError, ConnectionResetError, SizesDisagree) as error:
            cause = str(error) or f"not done after {timeout_seconds} s"
            raise TransferFailed(peer, cause, size=int(promised[1])) from error

    def transport_name(self, peer: InstanceId) -> str:
        return "loopback" if peer in self._peers else ""

    async def forget(self, peer: InstanceId) -> None:
        self._peers.discard(peer)
        for (address, _), waiting in self._hub.awaited.items():
            if address == self.address and waiting.peer == peer and not waiting.done.done():
                waiting.done.set_exception(ConnectionResetError(f"{peer} is gone"))

    async def close(self) -> None:
        self._closed = True
        for peer in list(self._peers):
            await self.forget(peer)
        self._hub.lose(self._instance)

    def _meet(self, peer: InstanceId, address: bytes, buffers: Sequence[Buffer], *, writable: bool) -> list[memoryview]:
        if self._closed:
            raise TransferFailed(peer, "this transport is closed", retryable=False)
        try:
            pieces = [memoryview(buffer) for buffer in buffers]
        except TypeError as error:
            raise BadBuffer(f"not a buffer: {error}") from error
        check_pieces(pieces, writable=writable)
        unpack_address(LOOPBACK, address)
        self._peers.add(peer)
        return [piece.cast("B") for piece in pieces]

    async def _copy(self, pieces: Sequence[memoryview], promised: np.ndarray, key: tuple[bytes, int]) -> None:
        fault = self._hub.faults.get(self._instance)
        if fault == "silent":
            await asyncio.Event().wait()
        waiting = self._waiting(key)
        waiting.begun_at = time.perf_counter()
        try:
            check_outline(promised, waiting.outline)
        except SizesDisagree as error:
            waiting.done.set_exception(error)
            raise
        for index, piece in enumerate(pieces):
            if fault == "dies" and index >= len(pieces) // 2:
                self._hub.lose(self._instance)
            self._waiting(key).pieces[index][:] = piece
            await asyncio.sleep(0)
        if fault == "garbles":
            waiting.pieces[0][0] ^= 1
        waiting.ended_at = time.perf_counter()
        self._waiting(key).done.set_result(None)

    def _waiting(self, key: tuple[bytes, int]) -> _Awaited:
        waiting = self._hub.awaited.get(key)
        if waiting is None or waiting.done.done():
            raise ConnectionResetError("nobody waits for it any more")
        return waiting
