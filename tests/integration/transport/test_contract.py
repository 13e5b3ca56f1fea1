"""What every transport promises, held against each of them."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from shared.specs.ids import InstanceId
from shared.transport.address import LOOPBACK, UCX, pack_address, this_machine
from shared.transport.interface import Ask, BadAddress, BadBuffer, TransferFailed, Transport
from shared.transport.ucx import MOST_TRANSFERS
from tests.integration.transport.conftest import MakeTransport

DECODE = InstanceId("decode-00000001")
PREFILL = InstanceId("prefill-00000001")
OTHER_PREFILL = InstanceId("prefill-00000002")

BLOCK = 1 << 18
LATE_SECONDS = 0.05  # in which something written late would be seen


class Sender:
    """A prefill instance, as far as the transport sees one."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.sends: list[asyncio.Task[None]] = []

    @property
    def address(self) -> bytes:
        return self.transport.address

    def sending(self, buffers: Sequence[np.ndarray]) -> Ask:
        """An `ask` that makes this sender send."""

        async def ask(address: bytes, transfer: int) -> None:
            task = asyncio.create_task(self.transport.send(DECODE, address, transfer, buffers, 5.0))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self.sends.append(task)

        return ask

    async def outcomes(self) -> list[BaseException | None]:
        return await asyncio.gather(*self.sends, return_exceptions=True)


@pytest.fixture
async def decode(make_transport: MakeTransport) -> Transport:
    return make_transport(DECODE)


@pytest.fixture
async def prefill(make_transport: MakeTransport) -> Sender:
    return Sender(make_transport(PREFILL))


def random_pool(blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (blocks, BLOCK), np.uint8)


def empty_pool(blocks: int) -> np.ndarray:
    return np.zeros((blocks, BLOCK), np.uint8)


async def never(address: bytes, transfer: int) -> None:
    """A peer that is asked and does nothing."""


async def unchanged_from_now_on(pool: np.ndarray) -> bool:
    before = pool.copy()
    await asyncio.sleep(LATE_SECONDS)
    return np.array_equal(pool, before)


async def test_scattered_runs_of_blocks_arrive_whole_and_touch_nothing_else(decode: Transport, prefill: Sender):
    theirs, ours = random_pool(8), empty_pool(8)
    sources, targets = [theirs[1:2], theirs[6:8], theirs[3:6]], [ours[7:8], ours[0:2], ours[3:6]]
    report = await decode.receive(PREFILL, prefill.address, targets, prefill.sending(sources), 5.0)
    for source, target in zip(sources, targets, strict=True):
        assert np.array_equal(source, target)
    assert not ours[2].any()
    assert not ours[6].any()
    assert report.bytes == 6 * BLOCK
    assert await prefill.outcomes() == [None]


async def test_more_messages_than_may_be_in_flight_arrive_in_their_places(decode: Transport, prefill: Sender):
    theirs, ours = random_pool(1).reshape(256, -1), empty_pool(1).reshape(256, -1)
    await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert np.array_equal(theirs, ours)


async def test_the_peer_may_answer_only_when_it_has_sent_everything(decode: Transport, prefill: Sender):
    theirs, ours = random_pool(1).reshape(256, -1), empty_pool(1).reshape(256, -1)

    async def ask(address: bytes, transfer: int) -> None:
        await prefill.transport.send(DECODE, address, transfer, list(theirs), 5.0)

    await decode.receive(PREFILL, prefill.address, list(ours), ask, 5.0)
    assert np.array_equal(theirs, ours)


async def test_many_transfers_from_two_peers_at_once_do_not_mix(make_transport: MakeTransport, decode: Transport):
    peers = {name: Sender(make_transport(name)) for name in (PREFILL, OTHER_PREFILL)}
    pools = {(name, i): random_pool(3, seed=hash((name, i)) % 1000) for name in peers for i in range(8)}
    ours = {key: empty_pool(3) for key in pools}
    receives = [
        decode.receive(name, peers[name].address, list(ours[name, i]), peers[name].sending(list(pool)), 5.0)
        for (name, i), pool in pools.items()
    ]
    await asyncio.gather(*receives)
    for key, pool in pools.items():
        assert np.array_equal(ours[key], pool)


async def test_the_number_of_a_transfer_tells_nobody_those_of_another_process(kind: str, make_transport: MakeTransport):
    """Over UCX, where a number is all that tells a transfer's messages from others; and none comes twice."""
    if kind == "loopback":
        pytest.skip("nobody else is on it")
    prefill, numbers = Sender(make_transport(PREFILL)), list[int]()

    async def refused(address: bytes, transfer: int) -> None:
        numbers.append(transfer)
        raise LookupError

    for receiver in (make_transport(DECODE), make_transport(DECODE)):
        for _ in range(2):
            with pytest.raises(LookupError):
                await receiver.receive(PREFILL, prefill.address, list(empty_pool(1)), refused, 5.0)
    assert numbers[1] == numbers[0] + 1
    assert numbers[3] == numbers[2] + 1
    assert abs(numbers[2] - numbers[0]) > 2, "by chance once in 2**37 times"
    assert max(numbers) < MOST_TRANSFERS


async def test_both_sides_may_pull_from_each_other(make_transport: MakeTransport):
    one, two = Sender(make_transport(PREFILL)), Sender(make_transport(OTHER_PREFILL))
    theirs, ours = random_pool(4), empty_pool(4)
    await asyncio.gather(
        one.transport.receive(OTHER_PREFILL, two.address, list(ours[:2]), two.sending(list(theirs[:2])), 5.0),
        two.transport.receive(PREFILL, one.address, list(ours[2:]), one.sending(list(theirs[2:])), 5.0),
    )
    assert np.array_equal(theirs, ours)


async def test_when_the_peer_refuses_its_refusal_is_raised_and_the_next_transfer_works(
    decode: Transport, prefill: Sender
):
    theirs, ours = random_pool(2), empty_pool(2)

    async def refused(address: bytes, transfer: int) -> None:
        raise LookupError("not held here any more")

    with pytest.raises(LookupError, match="not held here any more"):
        await decode.receive(PREFILL, prefill.address, list(ours), refused, 5.0)
    await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert np.array_equal(theirs, ours)


async def test_a_refusal_does_not_disturb_other_transfers_with_the_same_peer(decode: Transport, prefill: Sender):
    theirs, ours, refused_into = random_pool(8), empty_pool(8), empty_pool(1)
    asked = asyncio.Event()

    async def ask_later(address: bytes, transfer: int) -> None:
        await asked.wait()
        await prefill.sending(list(theirs))(address, transfer)

    async def refused(address: bytes, transfer: int) -> None:
        raise LookupError

    receiving = asyncio.create_task(decode.receive(PREFILL, prefill.address, list(ours), ask_later, 5.0))
    with pytest.raises(LookupError):
        await decode.receive(PREFILL, prefill.address, list(refused_into), refused, 5.0)
    asked.set()
    await receiving
    assert np.array_equal(theirs, ours)


async def test_a_silent_peer_ends_in_an_error_and_what_it_sends_later_lands_nowhere(decode: Transport, prefill: Sender):
    theirs, ours = random_pool(2), empty_pool(2)
    told: list[tuple[bytes, int]] = []

    async def remember(address: bytes, transfer: int) -> None:
        told.append((address, transfer))

    with pytest.raises(TransferFailed, match=r"not done after 0\.05 s") as failure:
        await decode.receive(PREFILL, prefill.address, list(ours), remember, 0.05)
    assert failure.value.retryable
    assert failure.value.peer == PREFILL
    assert failure.value.bytes == 2 * BLOCK
    await prefill.sending(list(theirs))(*told[0])
    assert await unchanged_from_now_on(ours)
    assert not ours.any()
    await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert np.array_equal(theirs, ours)


async def test_a_peer_that_hangs_while_it_is_asked_is_covered_by_the_same_deadline(decode: Transport, prefill: Sender):
    async def hang(address: bytes, transfer: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TransferFailed, match="not done after"):
        await decode.receive(PREFILL, prefill.address, list(empty_pool(1)), hang, 0.05)


@pytest.mark.parametrize("begun_seconds", [0.0, 0.002])
async def test_after_a_cancelled_receive_nothing_is_written_late(
    decode: Transport, prefill: Sender, begun_seconds: float
):
    theirs, ours = random_pool(64), empty_pool(64)
    receiving = asyncio.create_task(
        decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    )
    await asyncio.sleep(begun_seconds)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert await unchanged_from_now_on(ours)
    await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert np.array_equal(theirs, ours)


async def test_cancelling_a_receive_from_a_silent_peer_takes_no_longer_than_a_moment(
    decode: Transport, prefill: Sender
):
    receiving = asyncio.create_task(decode.receive(PREFILL, prefill.address, list(empty_pool(2)), never, 60.0))
    await asyncio.sleep(0.01)
    receiving.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await receiving


async def test_a_cancelled_send_ends_the_receive_or_completes_it(decode: Transport, prefill: Sender):
    theirs, ours = random_pool(64), empty_pool(64)

    async def begin_and_cancel(address: bytes, transfer: int) -> None:
        await prefill.sending(list(theirs))(address, transfer)
        await asyncio.sleep(0)
        prefill.sends[-1].cancel()

    receiving = decode.receive(PREFILL, prefill.address, list(ours), begin_and_cancel, 0.3)
    (outcome,) = await asyncio.gather(receiving, return_exceptions=True)
    failed = isinstance(outcome, TransferFailed) and outcome.retryable
    assert failed or np.array_equal(theirs, ours)
    await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize(
    "sent",
    [
        random_pool(3),
        random_pool(5),
        random_pool(4)[:, :-1].copy(),
        random_pool(8).reshape(4, -1),
        random_pool(4).reshape(1, -1),
    ],
    ids=["fewer", "more", "shorter", "longer", "in one"],
)
async def test_messages_of_other_sizes_are_an_error_not_wrong_data(
    decode: Transport, prefill: Sender, sent: np.ndarray
):
    ours = empty_pool(4)
    with pytest.raises(TransferFailed, match="expected were") as failure:
        await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(sent)), 5.0)
    assert not failure.value.retryable
    assert await unchanged_from_now_on(ours)


async def test_the_death_of_the_sender_ends_the_receive_at_once(decode: Transport, prefill: Sender):
    ours = empty_pool(2)
    receiving = asyncio.create_task(decode.receive(PREFILL, prefill.address, list(ours), never, 60.0))
    await asyncio.sleep(0.05)
    await prefill.transport.close()
    async with asyncio.timeout(2):
        with pytest.raises(TransferFailed) as failure:
            await receiving
    assert failure.value.retryable


@pytest.mark.parametrize("address", [b"", b"x", bytes(217), pack_address(b"KVX1", this_machine(), b"whoever")])
async def test_a_garbage_address_is_refused_before_anything_happens(decode: Transport, address: bytes):
    with pytest.raises(BadAddress):
        await decode.receive(PREFILL, address, list(empty_pool(1)), never, 1.0)
    with pytest.raises(BadAddress):
        await decode.send(PREFILL, address, 1, list(empty_pool(1)), 1.0)


async def test_an_altered_address_is_refused(decode: Transport, prefill: Sender):
    altered = bytearray(prefill.address)
    altered[-3] ^= 1
    with pytest.raises(BadAddress, match="checksum"):
        await decode.receive(PREFILL, bytes(altered), list(empty_pool(1)), never, 1.0)


async def test_an_address_of_another_kind_of_transport_is_refused(decode: Transport):
    other = LOOPBACK if decode.address[:4] == UCX else UCX
    with pytest.raises(BadAddress):
        await decode.receive(PREFILL, pack_address(other, this_machine(), b"x"), list(empty_pool(1)), never, 1.0)


@pytest.mark.parametrize("transfer", [-1, 1 << 40, 1 << 70])
async def test_a_transfer_id_that_nobody_can_have_chosen_is_an_error(decode: Transport, prefill: Sender, transfer: int):
    with pytest.raises(TransferFailed):
        await prefill.transport.send(DECODE, decode.address, transfer, list(random_pool(1)), 5.0)


async def test_a_send_that_nobody_waits_for_ends_in_an_error(decode: Transport, prefill: Sender):
    with pytest.raises(TransferFailed) as failure:
        await prefill.transport.send(DECODE, decode.address, 12345, list(random_pool(1)), 0.1)
    assert failure.value.peer == DECODE
    assert failure.value.retryable


async def test_memory_that_cannot_be_filled_in_one_piece_is_refused(decode: Transport, prefill: Sender):
    frozen = empty_pool(1)
    frozen.flags.writeable = False
    for buffers in ([frozen], [empty_pool(2)[:, ::2]], [empty_pool(1)[:0]], [], [object()]):
        with pytest.raises(BadBuffer):
            await decode.receive(PREFILL, prefill.address, buffers, never, 1.0)


async def test_forgetting_a_peer_ends_the_transfers_with_it_and_no_others(
    make_transport: MakeTransport, decode: Transport, prefill: Sender
):
    other = Sender(make_transport(OTHER_PREFILL))
    theirs, ours = random_pool(2), empty_pool(2)
    asked = asyncio.Event()

    async def ask_later(address: bytes, transfer: int) -> None:
        await asked.wait()
        await other.sending(list(theirs))(address, transfer)

    lost = asyncio.create_task(decode.receive(PREFILL, prefill.address, list(empty_pool(1)), never, 60.0))
    kept = asyncio.create_task(decode.receive(OTHER_PREFILL, other.address, list(ours), ask_later, 5.0))
    await asyncio.sleep(0.01)
    await decode.forget(PREFILL)
    async with asyncio.timeout(2):
        with pytest.raises(TransferFailed, match=f"{PREFILL} is gone"):
            await lost
    asked.set()
    await kept
    assert np.array_equal(theirs, ours)


async def test_closing_ends_every_transfer_and_refuses_new_ones(decode: Transport, prefill: Sender):
    receiving = asyncio.create_task(decode.receive(PREFILL, prefill.address, list(empty_pool(1)), never, 60.0))
    await asyncio.sleep(0.01)
    await decode.close()
    await decode.close()
    with pytest.raises(TransferFailed):
        await receiving
    with pytest.raises(TransferFailed, match="closed") as failure:
        await decode.receive(PREFILL, prefill.address, list(empty_pool(1)), never, 1.0)
    assert not failure.value.retryable


async def test_the_transport_in_use_is_named_once_there_is_a_connection(decode: Transport, prefill: Sender, kind: str):
    assert decode.transport_name(PREFILL) == ""
    theirs, ours = random_pool(2), empty_pool(2)
    report = await decode.receive(PREFILL, prefill.address, list(ours), prefill.sending(list(theirs)), 5.0)
    assert report.transport == decode.transport_name(PREFILL) == kind.rpartition(" ")[2]
    assert prefill.transport.transport_name(DECODE) == report.transport
