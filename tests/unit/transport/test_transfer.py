import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator

import pytest

from shared.specs.ids import InstanceId
from shared.transport.interface import TransferFailed
from shared.transport.pieces import SizesDisagree
from shared.transport.transfer import MOST_IN_FLIGHT, Message, MessageFailed, Transfer

PEER = InstanceId("prefill-00000001")


class FakeLink:
    """Its messages end when the test says so; being cut ends them all."""

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.cut_because = ""
        self.given_up: list[Message] = []

    def posts(self, count: int) -> Iterator[Message]:
        for _ in range(count):
            self.raise_if_lost()
            self.posted.append(asyncio.get_running_loop().create_future())
            yield self.posted[-1]

    def raise_if_lost(self) -> None:
        if self.cut_because:
            raise MessageFailed(f"cut: {self.cut_because}")

    async def give_up(self, messages: Collection[Message], cause: str) -> None:
        self.given_up += messages

    async def cut(self, cause: str) -> None:
        self.cut_because = cause
        for message in self.unended:
            message.set_exception(MessageFailed(cause))

    @property
    def unended(self) -> list[Message]:
        return [message for message in self.posted if not message.done()]

    def end_one(self) -> None:
        self.unended[0].set_result(None)


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


def transfer_of(link: FakeLink, count: int) -> Transfer:
    return Transfer(link, PEER, link.posts(count), 1000)


async def run(transfer: Transfer, ask: Callable[[], Awaitable[None]], timeout_seconds: float = 5.0) -> None:
    async with transfer.guarded(timeout_seconds):
        transfer.start()
        await ask()
        await transfer.all()


async def nothing() -> None:
    """The peer needs not to be asked."""


async def test_no_more_than_the_limit_is_in_flight_and_every_end_lets_in_the_next(link: FakeLink):
    transfer = transfer_of(link, MOST_IN_FLIGHT + 2)
    transfer.start()
    assert len(link.posted) == MOST_IN_FLIGHT
    link.end_one()
    await asyncio.sleep(0)
    assert len(link.posted) == MOST_IN_FLIGHT + 1


async def test_all_messages_of_a_long_transfer_are_posted_and_awaited(link: FakeLink):
    transfer = transfer_of(link, 3 * MOST_IN_FLIGHT)
    transfer.start()
    waiting = asyncio.create_task(transfer.all())
    for _ in range(3 * MOST_IN_FLIGHT):
        assert not waiting.done()
        link.end_one()
        await asyncio.sleep(0)
    await waiting
    assert not link.unended


async def test_a_failed_message_cuts_the_link_before_the_transfer_fails(link: FakeLink):
    async def fail_one() -> None:
        link.posted[1].set_exception(OSError("reset by peer"))

    with pytest.raises(TransferFailed, match="reset by peer") as failure:
        await run(transfer_of(link, 3), fail_one)
    assert link.cut_because
    assert not link.unended
    assert failure.value.retryable
    assert failure.value.bytes == 1000


async def test_a_transfer_hurt_by_the_cut_of_another_says_so_and_can_be_retried(link: FakeLink):
    async def cut_for_another() -> None:
        await link.cut("another one was late")

    with pytest.raises(TransferFailed, match="cut: another one was late") as failure:
        await run(transfer_of(link, 3), cut_for_another)
    assert failure.value.retryable


async def test_a_transfer_that_is_late_is_cut(link: FakeLink):
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TransferFailed, match=r"not done after 0\.001 s"):
        await run(transfer_of(link, 3), wait, timeout_seconds=0.001)
    assert not link.unended


async def test_sizes_that_disagree_are_not_worth_a_retry(link: FakeLink):
    async def disagree() -> None:
        raise SizesDisagree("3 bytes here, 4 there")

    with pytest.raises(TransferFailed) as failure:
        await run(transfer_of(link, 3), disagree)
    assert not failure.value.retryable
    assert not link.unended


async def test_when_the_peer_cannot_be_asked_only_the_messages_of_this_transfer_are_given_up(link: FakeLink):
    async def ask() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await run(transfer_of(link, 3), ask)
    assert set(link.given_up) == set(link.posted)
    assert not link.cut_because


async def test_a_timeout_of_whoever_asks_is_not_taken_for_our_own(link: FakeLink):
    async def ask() -> None:
        raise TimeoutError("the bus is slow")

    with pytest.raises(TimeoutError, match="the bus is slow"):
        await run(transfer_of(link, 3), ask)


async def test_a_cancelled_transfer_waits_for_what_is_on_its_way_and_cuts_nothing(link: FakeLink):
    transfer = transfer_of(link, 2)
    receiving = asyncio.create_task(run(transfer, nothing))
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.sleep(0)
    assert not receiving.done()
    link.end_one()
    link.end_one()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert not link.cut_because


async def test_cancelling_again_does_not_leave_messages_in_flight(link: FakeLink):
    transfer = transfer_of(link, 2)
    receiving = asyncio.create_task(run(transfer, nothing))
    for _ in range(5):
        await asyncio.sleep(0)
        receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert not link.unended
