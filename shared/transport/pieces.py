"""Checks that UCX does not make: it moves strided memory wrongly, writes into read-only memory, and takes a message
that is shorter than its buffer, all without a word.
"""

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from shared.transport.interface import BadBuffer


class Piece(Protocol):
    """What a memoryview and a ucxx Array both tell of a buffer."""

    @property
    def c_contiguous(self) -> bool: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...


class SizesDisagree(Exception):
    """The peer sends other sizes than are expected here."""


def check_pieces(pieces: Sequence[Piece], *, writable: bool) -> None:
    """BadBuffer unless each is one solid piece of memory that can be sent, or received into if `writable`."""
    if not pieces:
        raise BadBuffer("a transfer of no buffers")
    for piece in pieces:
        if not piece.nbytes:
            raise BadBuffer("a buffer is empty")
        if not piece.c_contiguous:
            raise BadBuffer(f"a buffer of {piece.nbytes} bytes is not contiguous")
        if writable and piece.readonly:
            raise BadBuffer(f"a buffer of {piece.nbytes} bytes is read-only: nothing can be received into it")


def outline(pieces: Sequence[Piece]) -> np.ndarray:
    """What the sides of a transfer must agree on, uint64 [3]: how many messages, bytes in all, crc32 of their sizes."""
    sizes = np.array([piece.nbytes for piece in pieces], np.uint64)
    return np.array([len(sizes), sizes.sum(), zlib.crc32(sizes.data)], np.uint64)


def check_outline(sent: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(sent, expected):
        raise SizesDisagree(
            f"the peer sends {sent[1]} bytes in {sent[0]} messages, expected were {expected[1]} in {expected[0]}, "
            "each of the agreed size"
        )
