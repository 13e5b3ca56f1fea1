"""Memory between processes over UCX: CMA within a host, CUDA IPC between its GPUs, TCP or RDMA between hosts."""

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np

from shared.specs.ids import InstanceId
from shared.transport.address import UCX, pack_address, this_machine, unpack_address
from shared.transport.connection import Connection, Endpoint, Lane
from shared.transport.environment import prepare_environment
from shared.transport.interface import Ask, BadBuffer, Buffer, TransferFailed, TransferReport
from shared.transport.pieces import check_outline, check_pieces, outline
from shared.transport.transfer import Message, MessageFailed, Transfer, uninterrupted
from shared.transport.worker import UcxContext, UcxWorker

INDEX_BITS = 24  # of a 64-bit tag: which message of its transfer
MOST_TRANSFERS = 1 << 64 - INDEX_BITS
FIRST_TRANSFER_BITS = 64 - INDEX_BITS - 1  # as many again are left to count on to


class UcxTransport:
    """Receives over one lane per peer; sends from one worker, over one connection per peer and lane of that peer.

    The messages of a transfer are tagged transfer << INDEX_BITS | index: first the outline of the sizes, then the
    buffers. Belongs to the running event loop. A process that has made one must not fork, only spawn.
    """

    def __init__(self, cuda_device: int | None = None) -> None:
        """`cuda_device`: the device that all buffers are on, as this process counts them; None for host memory."""
        prepare_environment(cuda=cuda_device is not None)
        from ucxx._lib.arr import Array

        self._array = Array
        self._context = UcxContext(cuda_device)
        self._worker = UcxWorker(self._context)
        self.address = pack_address(UCX, this_machine(), self._worker.address)
        self._transfers = itertools.count(secrets.randbits(FIRST_TRANSFER_BITS))  # whoever never asked guesses no tag
        self._lanes: dict[InstanceId, Lane] = {}
        self._connections: dict[tuple[InstanceId, bytes], Connection] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def receive(
        self, peer: InstanceId, address: bytes, buffers: Sequence[Buffer], ask: Ask, timeout_seconds: float
    ) -> TransferReport:
        arrays = self._arrays(buffers, writable=True)
        expected = outline(arrays)
        promised = np.zeros_like(expected)
        lane = await self._lane(peer, address)
        number = next(self._transfers)
        size = int(expected[1])
        transfer = Transfer(lane, peer, self._posts(lane.post, number, promised, arrays), size)
        asked = time.perf_counter()
        async with transfer.guarded(timeout_seconds):
            transfer.start()
            await ask(lane.address, number)
            await transfer.first()
            check_outline(promised, expected)
            await transfer.all()
        return TransferReport(
            bytes=size,
            wait_seconds=transfer.first_ended_at - asked,
            move_seconds=transfer.last_ended_at - transfer.first_ended_at,
            transport=lane.transport_name,
        )

    async def send(
        self, peer: InstanceId, address: bytes, transfer: int, buffers: Sequence[Buffer], timeout_seconds: float
    ) -> None:
        if not 0 <= transfer < MOST_TRANSFERS:
            raise TransferFailed(peer, f"{transfer} is no transfer id", retryable=False)
        arrays = self._arrays(buffers, writable=False)
        promised = outline(arrays)
        connection = await self._connection(peer, address)
        posts = self._posts(connection.post, transfer, promised, arrays)
        sending = Transfer(connection, peer, posts, int(promised[1]))
        async with sending.guarded(timeout_seconds):
            sending.start()
            await sending.all()

    def transport_name(self, peer: InstanceId) -> str:
        names = [lane.transport_name for known, lane in self._lanes.items() if known == peer]
        names += [connection.transport_name for (known, _), connection in self._connections.items() if known == peer]
        return next(filter(None, names), "")

    async def forget(self, peer: InstanceId) -> None:
        lanes = [self._lanes.pop(peer)] if peer in self._lanes else []
        connections = [self._connections.pop(key) for key in list(self._connections) if key[0] == peer]
        await _cut([*lanes, *connections], f"{peer} is gone")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await _cut([*self._lanes.values(), *self._connections.values()], "the transport is closed")
        await uninterrupted(self._worker.close())
        self._lanes.clear()
        self._connections.clear()

    async def _lane(self, peer: InstanceId, address: bytes) -> Lane:
        """The lane to `peer`; a new one if there is none, or none that works. BadAddress, TransferFailed."""
        endpoint = self._endpoint_of(peer, address)
        former = self._lanes.get(peer)
        if former is not None and former.usable and former.peer_address == address:
            return former
        worker = UcxWorker(self._context)
        try:
            lane = Lane(worker, address, endpoint)
        except MessageFailed as error:
            await uninterrupted(worker.close())
            raise TransferFailed(peer, str(error)) from error
        self._lanes[peer] = lane
        if former is not None:
            await _cut([former], "replaced by a new lane")
        return lane

    async def _connection(self, peer: InstanceId, address: bytes) -> Connection:
        """The connection to that lane of `peer`, likewise. Those to its former lanes are dropped when they are idle."""
        endpoint = self._endpoint_of(peer, address)
        known = self._connections.get((peer, address))
        if known is not None and known.usable:
            return known
        try:
            connection = Connection(self._worker, endpoint)
        except MessageFailed as error:
            raise TransferFailed(peer, str(error)) from error
        idle = [key for key, former in self._connections.items() if key[0] == peer and not former.busy]
        former = [self._connections.pop(key) for key in idle]
        self._connections[peer, address] = connection
        await _cut(former, "replaced by a new connection")
        return connection

    def _endpoint_of(self, peer: InstanceId, address: bytes) -> bytes:
        if self._closed:
            raise TransferFailed(peer, "this transport is closed", retryable=False)
        return unpack_address(UCX, address).endpoint

    def _arrays(self, buffers: Sequence[Buffer], *, writable: bool) -> list[Any]:
        try:
            arrays: list[Any] = [self._array(buffer) for buffer in buffers]
        except (TypeError, ValueError) as error:
            raise BadBuffer(f"not a buffer: {error}") from error
        check_pieces(arrays, writable=writable)
        return arrays

    def _posts(
        self, post: Callable[[Any, int], Message], transfer: int, promised: np.ndarray, arrays: list[Any]
    ) -> Iterator[Message]:
        for index, array in enumerate([self._array(promised), *arrays]):
            yield post(array, transfer << INDEX_BITS | index)


async def _cut(endpoints: Sequence[Endpoint], cause: str) -> None:
    for endpoint in endpoints:
        await uninterrupted(endpoint.cut(cause))
