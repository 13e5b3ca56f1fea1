"""The bytes of a buffer, wherever they are, and their checksum. CUDA tensors by duck typing: no torch."""

import zlib

import numpy as np

from shared.transport.interface import Buffer


def host_bytes(buffer: Buffer) -> np.ndarray:
    """The buffer's bytes, uint8 [bytes]: a view of host memory, or a copy of a CUDA tensor once the device is done."""
    host = buffer.cpu() if hasattr(buffer, "__cuda_array_interface__") else buffer
    return np.asarray(host).reshape(-1).view(np.uint8)


def checksum(buffer: Buffer) -> int:
    """crc32 of the buffer's bytes."""
    return zlib.crc32(host_bytes(buffer).data)
