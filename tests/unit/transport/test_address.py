import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transport.address import LOOPBACK, UCX, is_on_this_machine, pack_address, this_machine, unpack_address
from shared.transport.interface import BadAddress

ADDRESS = pack_address(UCX, this_machine(), bytes(range(200)))


def test_an_address_comes_back_whole():
    address = unpack_address(UCX, ADDRESS)
    assert address.endpoint == bytes(range(200))
    assert address.machine == this_machine()


@given(st.integers(0, len(ADDRESS) * 8 - 1))
def test_an_address_with_any_one_bit_flipped_is_refused(bit: int):
    altered = bytearray(ADDRESS)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadAddress):
        unpack_address(UCX, bytes(altered))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_address(data: bytes):
    with pytest.raises(BadAddress):
        unpack_address(UCX, data)


@pytest.mark.parametrize("length", [0, 3, 8, 24, len(ADDRESS) - 1])
def test_a_cut_address_is_refused(length: int):
    with pytest.raises(BadAddress):
        unpack_address(UCX, ADDRESS[:length])


def test_an_address_of_another_kind_of_transport_is_refused():
    with pytest.raises(BadAddress, match="KVL1"):
        unpack_address(LOOPBACK, ADDRESS)


def test_an_address_tells_whether_its_owner_is_on_this_machine():
    assert is_on_this_machine(ADDRESS)
    assert not is_on_this_machine(pack_address(UCX, bytes(16), b"far away"))
