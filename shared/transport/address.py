"""Transport addresses as bytes that can be checked: UCX kills the process when it is given ones that are not its own.

Layout: magic (4 bytes) | crc32 of the rest (4, big-endian) | id of the running machine (16) | the transport's own part.
"""

import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

from shared.transport.interface import BadAddress

UCX = b"KVU1"
LOOPBACK = b"KVL1"

_HEADER_BYTES = 8
_MACHINE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Address:
    """A peer's address, found whole."""

    machine: bytes
    endpoint: bytes


def pack_address(magic: bytes, machine: bytes, endpoint: bytes) -> bytes:
    body = machine + endpoint
    return magic + zlib.crc32(body).to_bytes(4, "big") + body


def unpack_address(magic: bytes, data: bytes) -> Address:
    """The address in `data`, or BadAddress if a bit of it is wrong."""
    if data[:4] != magic:
        raise BadAddress(f"expected an address starting with {magic!r}, got {data[:4]!r} ({len(data)} bytes)")
    body = data[_HEADER_BYTES:]
    if len(body) <= _MACHINE_BYTES or zlib.crc32(body).to_bytes(4, "big") != data[4:_HEADER_BYTES]:
        raise BadAddress(f"an address of {len(data)} bytes fails its checksum")
    return Address(body[:_MACHINE_BYTES], body[_MACHINE_BYTES:])


def is_on_this_machine(data: bytes) -> bool:
    """Whether the owner of this whole address runs on the machine that we run on, in whatever container."""
    return data[_HEADER_BYTES : _HEADER_BYTES + _MACHINE_BYTES] == this_machine()


def this_machine() -> bytes:
    """16 bytes: the same in every process and container of one running machine, others after its next boot."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
