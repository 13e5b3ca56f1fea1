"""What a transport promises, and the ways it can fail.

The receiver is in charge. It posts receives for buffers of its own and hands the peer its address and a transfer id
(over the bus, never here); the peer sends into them. A transfer id is never used twice at an address, so nothing late
lands in a newer transfer.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.specs.ids import InstanceId

# One contiguous piece of memory: anything with the buffer protocol (numpy) or __cuda_array_interface__ (a CUDA tensor).
Buffer = Any

# Tells the peer to send: `await ask(address to send to, transfer id)`.
Ask = Callable[[bytes, int], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """What a finished receive moved, and how long it took."""

    bytes: int
    wait_seconds: float  # from asking to the peer's first message
    move_seconds: float  # from the peer's first message to the last byte
    transport: str  # what carried the bulk: "cma", "cuda_ipc", "tcp", ... or "loopback"

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes / max(self.move_seconds, 1e-9) / 1e9


class TransportError(Exception):
    """Moving memory did not work."""


class TransferFailed(TransportError):
    """A transfer ended without all of its bytes: what the buffers hold is undefined, but nothing writes to them now.

    `retryable` is False when the same transfer would fail again.
    """

    def __init__(self, peer: InstanceId, cause: str, *, retryable: bool = True, size: int = 0) -> None:
        super().__init__(f"transfer of {size} bytes with {peer} failed: {cause}")
        self.peer = peer
        self.cause = cause
        self.retryable = retryable
        self.bytes = size


class BadAddress(TransportError):
    """Bytes that are no address of this kind of transport, or not whole."""


class BadBuffer(TransportError):
    """A buffer that cannot be moved in one piece: strided, empty, or not writable where it must be."""


class Transport(Protocol):
    """UcxTransport moves memory between processes, LoopbackTransport copies it within one. One event loop owns it."""

    @property
    def address(self) -> bytes:
        """Where receivers reach this instance. Checksummed; goes into beats."""
        ...

    async def receive(
        self, peer: InstanceId, address: bytes, buffers: Sequence[Buffer], ask: Ask, timeout_seconds: float
    ) -> TransferReport:
        """Fill `buffers` with what `peer`, reachable at `address`, sends once it has been asked.

        Raises TransferFailed on timeout, on a dead peer and on sizes that disagree; BadAddress and BadBuffer before
        anything is posted; and whatever `ask` raises. However it ends, cancellation of the caller included, no byte is
        written to the buffers afterwards.
        """
        ...

    async def send(
        self, peer: InstanceId, address: bytes, transfer: int, buffers: Sequence[Buffer], timeout_seconds: float
    ) -> None:
        """Send `buffers` into the receives that `peer` posted under `transfer` at `address`: same order, same sizes.

        Returns when the transport calls them all sent. Only the peer's own word says that it has them: UCX also calls
        sent what a receiver drops that gives up just then. After TransferFailed or a cancellation the peer may still
        read: the memory must stay as it is until the peer says that it is done, or its own deadline has surely passed.
        """
        ...

    def transport_name(self, peer: InstanceId) -> str:
        """What carries bulk data to or from `peer`; "" while there is no connection."""
        ...

    async def forget(self, peer: InstanceId) -> None:
        """The peer is gone: end every transfer with it and drop its connections."""
        ...

    async def close(self) -> None:
        """End every transfer and give everything back. Idempotent."""
        ...
