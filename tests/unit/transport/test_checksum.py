import zlib

import numpy as np

from shared.transport.checksum import checksum, host_bytes


class CudaTensor:
    """As much of one as the transport knows."""

    def __init__(self, data: np.ndarray) -> None:
        self._data = data
        self.__cuda_array_interface__ = {"shape": data.shape}

    def cpu(self) -> np.ndarray:
        return self._data


def test_a_checksum_is_the_crc32_of_all_bytes_whatever_the_shape_and_type():
    numbers = np.arange(600, dtype=np.float32).reshape(2, 3, 100)
    assert checksum(numbers) == checksum(numbers.view(np.uint8)) == zlib.crc32(numbers.tobytes())


def test_one_wrong_bit_changes_the_checksum():
    numbers = np.zeros(1000, np.uint8)
    before = checksum(numbers)
    numbers[777] ^= 4
    assert checksum(numbers) != before


def test_a_cuda_tensor_is_copied_to_the_host_first():
    numbers = np.arange(100, dtype=np.uint8)
    assert checksum(CudaTensor(numbers)) == checksum(numbers)


def test_host_memory_is_looked_at_not_copied():
    numbers = np.zeros((3, 4), np.uint16)
    assert np.shares_memory(host_bytes(numbers), numbers)
