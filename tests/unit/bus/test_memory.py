import asyncio

import pytest
from structlog.testing import capture_logs

from shared.bus import BusTimeout
from shared.bus.memory import MemoryBus, subject_matches
from shared.bus.troubles import Troubles
from shared.messages.requests import AbortRequest, Accepted
from shared.specs.ids import RequestId


def numbered(number: int) -> AbortRequest:
    return AbortRequest(request=RequestId("r"), attempt=number)


async def accept(message: AbortRequest) -> Accepted:
    return Accepted(request=message.request, attempt=message.attempt)


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.b.c", "a.b", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.*.c", "a.b.d", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
    ],
)
def test_a_subject_matches_its_pattern_word_by_word(pattern: str, subject: str, matches: bool):
    assert subject_matches(pattern, subject) is matches


@pytest.mark.parametrize(
    ("delays", "arrived"), [((), [2]), ((0.0,), [1, 2]), ((0.0, 0.0), [1, 1, 2]), ((0.01,), [2, 1])]
)
async def test_a_test_can_lose_double_and_delay_a_message(delays: tuple[float, ...], arrived: list[int]):
    hub, received, complete = MemoryBus(), [], asyncio.Event()
    hub.deliveries = lambda subject, message: delays if message == numbered(1) else (0.0,)

    async def take(message: AbortRequest) -> None:
        received.append(message.attempt)
        if len(received) == len(arrived):
            complete.set()

    async with hub.connect("receiver") as receiver, hub.connect("sender") as sender, asyncio.timeout(5):
        await receiver.subscribe("x", take, AbortRequest)
        await sender.publish("x", numbered(1))
        await sender.publish("x", numbered(2))
        await complete.wait()
    assert received == arrived


async def test_a_lost_reply_leaves_the_request_done_and_the_asker_waiting():
    hub, handled = MemoryBus(), []
    hub.deliveries = lambda subject, message: () if isinstance(message, Accepted) else (0.0,)
    async with hub.connect("answerer") as answerer, hub.connect("asker") as asker:

        async def take(message: AbortRequest) -> Accepted:
            handled.append(message.attempt)
            return await accept(message)

        await answerer.subscribe("x", take, AbortRequest)
        with pytest.raises(BusTimeout):
            await asker.request("x", numbered(1), Accepted, timeout_seconds=0.01)
    assert handled == [1]


async def test_a_restart_runs_the_reconnect_callbacks():
    hub, ran = MemoryBus(), []

    async def note() -> None:
        ran.append(1)

    async with hub.connect("one") as one:
        one.on_reconnect(note)
        await hub.restart()
    assert ran == [1]


def test_trouble_of_one_kind_is_counted_every_time_and_logged_once_in_a_while():
    troubles = Troubles()
    with capture_logs() as logged:
        for _ in range(5):
            troubles.note("bus_slow_consumer", ValueError("behind"), "tokens")
        troubles.note("bus_permission_violation", ValueError("no"))
    assert +troubles.counts == {"bus_slow_consumer": 5, "bus_permission_violation": 1}
    assert [line["event"] for line in logged] == ["bus_slow_consumer", "bus_permission_violation"]
    assert logged[0]["subject"] == "tokens"
