import numpy as np
import pytest

from shared.transport.interface import BadBuffer
from shared.transport.pieces import SizesDisagree, check_outline, check_pieces, outline

POOL = np.zeros((4, 8), np.uint8)


def views(*arrays: np.ndarray) -> list[memoryview]:
    return [array.data for array in arrays]


def test_solid_writable_memory_can_be_sent_and_received_into():
    check_pieces(views(POOL[1], POOL[2:4]), writable=True)


def test_read_only_memory_can_be_sent_but_not_received_into():
    frozen = POOL.copy()
    frozen.flags.writeable = False
    check_pieces(views(frozen), writable=False)
    with pytest.raises(BadBuffer, match="read-only"):
        check_pieces(views(frozen), writable=True)


def test_memory_with_holes_is_refused():
    with pytest.raises(BadBuffer, match="not contiguous"):
        check_pieces(views(POOL[:, :3]), writable=False)


def test_empty_memory_and_no_memory_are_refused():
    with pytest.raises(BadBuffer, match="empty"):
        check_pieces(views(POOL[:0]), writable=False)
    with pytest.raises(BadBuffer, match="no buffers"):
        check_pieces([], writable=False)


@pytest.mark.parametrize("sent", [POOL[:1], POOL[:3], POOL[:, :4].copy(), POOL.reshape(2, 16), POOL.reshape(8, 4)])
def test_other_numbers_and_sizes_of_messages_are_noticed(sent: np.ndarray):
    with pytest.raises(SizesDisagree):
        check_outline(outline(views(*sent)), outline(views(*POOL)))


def test_the_same_sizes_in_another_order_are_noticed():
    short, long = POOL[0, :3], POOL[1]
    check_outline(outline(views(short, long)), outline(views(short, long)))
    with pytest.raises(SizesDisagree):
        check_outline(outline(views(long, short)), outline(views(short, long)))
