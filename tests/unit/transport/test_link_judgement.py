import numpy as np
import pytest

from shared.transport.selftest import pattern, shortcoming


def test_the_pattern_is_the_same_on_both_sides_and_another_for_every_transfer():
    assert np.array_equal(pattern(7, 4096), pattern(7, 4096))
    assert np.count_nonzero(pattern(7, 4096) == pattern(8, 4096)) < 100


def test_the_pattern_does_not_repeat_from_piece_to_piece():
    pieces = pattern(7, 1 << 16).reshape(16, -1)
    assert len({piece.tobytes() for piece in pieces}) == 16


@pytest.mark.parametrize("size", [1, 7, 8, 4097])
def test_the_pattern_has_the_size_that_was_asked_for(size: int):
    assert pattern(1, size).shape == (size,)


@pytest.mark.parametrize(
    ("transport", "cuda"), [("cma", False), ("posix", False), ("loopback", False), ("cuda_ipc", True)]
)
def test_nothing_is_wrong_with_a_fast_link_over_what_was_expected(transport: str, cuda: bool):
    assert shortcoming(transport, 50.0, cuda=cuda) == ""


def test_tcp_within_one_machine_is_called_by_its_name_with_what_would_help():
    complaint = shortcoming("tcp", 3.0, cuda=False)
    assert "tcp instead of cma" in complaint
    assert "SYS_PTRACE" in complaint


def test_gpu_memory_through_the_host_is_called_by_its_name():
    assert "tcp instead of cuda_ipc" in shortcoming("tcp", 3.0, cuda=True)


def test_the_right_transport_at_an_impossible_speed_is_not_believed():
    assert "0.30 GB/s over cuda_ipc" in shortcoming("cuda_ipc", 0.3, cuda=True)


def test_the_pattern_of_a_link_test_is_made_for_any_number_that_a_transfer_may_have():
    made = [bytes(pattern(transfer, 64)) for transfer in (0, 1, 2**39 + 7, 2**39 + 8, 2**40 - 1)]
    assert len(set(made)) == len(made)
