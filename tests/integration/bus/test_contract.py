"""What every bus promises: the same tests in memory and over a real nats-server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from opentelemetry import trace

from shared.bus import Bus, BusTimeout, BusUnavailable, MessageTooBig, NoResponder
from shared.messages.codec import MalformedMessage
from shared.messages.instances import Beat
from shared.messages.requests import AbortRequest, Accepted, Refused
from shared.specs.ids import InstanceId
from shared.telemetry.traces import context_from

Connect = Callable[[str], Awaitable[Bus]]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Inbox:
    """A handler that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.traces: list[int] = []
        self._arrived = asyncio.Condition()

    async def __call__(self, message: AbortRequest) -> None:
        async with self._arrived:
            self.numbers.append(message.attempt)
            self.traces.append(trace.get_current_span().get_span_context().trace_id)
            self._arrived.notify_all()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(lambda: len(self.numbers) >= count)


def numbered(number: int, text: str = "r") -> AbortRequest:
    return AbortRequest(request=text, attempt=number)  # pyright: ignore[reportArgumentType]


async def accept(message: AbortRequest) -> Accepted:
    return Accepted(request=message.request, attempt=message.attempt)


async def test_messages_arrive_in_the_order_they_were_published(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()
    await receiver.subscribe("order", inbox, AbortRequest)
    for number in range(500):
        await sender.publish("order", numbered(number))
    await inbox.has(500)
    assert inbox.numbers == list(range(500))


async def test_what_a_handler_returns_is_the_reply(connect: Connect):
    asker, answerer = await connect("asker"), await connect("answerer")
    await answerer.subscribe("ask", accept, AbortRequest)
    reply = await asker.request("ask", numbered(7), Refused, Accepted, timeout_seconds=5)
    assert reply == Accepted(request=numbered(7).request, attempt=7)


async def test_a_request_to_nobody_fails_at_once(connect: Connect):
    asker = await connect("asker")
    started = time.monotonic()
    with pytest.raises(NoResponder, match="nobody"):
        await asker.request("nobody", numbered(1), Accepted, timeout_seconds=5)
    assert time.monotonic() - started < 2


async def test_a_request_without_a_reply_times_out(connect: Connect):
    asker, silent = await connect("asker"), await connect("silent")
    await silent.subscribe("silent", Inbox(), AbortRequest)
    with pytest.raises(BusTimeout, match=r"silent within 0\.1 s"):
        await asker.request("silent", numbered(1), Accepted, timeout_seconds=0.1)


async def test_a_reply_of_another_kind_is_malformed(connect: Connect):
    asker, answerer = await connect("asker"), await connect("answerer")
    await answerer.subscribe("other", accept, AbortRequest)
    with pytest.raises(MalformedMessage, match="expected Refused"):
        await asker.request("other", numbered(1), Refused, timeout_seconds=5)


async def test_one_member_of_a_queue_group_gets_each_message(connect: Connect):
    sender, group, outsider = await connect("sender"), Inbox(), Inbox()
    shares = {"left": 0, "right": 0}

    async def take(name: str, message: AbortRequest) -> None:
        shares[name] += 1
        await group(message)

    for name in shares:
        await (await connect(name)).subscribe("shared", partial(take, name), AbortRequest, queue="group")
    await (await connect("outsider")).subscribe("shared", outsider, AbortRequest)
    for number in range(60):
        await sender.publish("shared", numbered(number))
    await outsider.has(60)
    await group.has(60)
    assert sorted(group.numbers) == list(range(60))
    assert all(shares.values())


async def test_wildcards_match_one_word_or_the_rest(connect: Connect):
    sender, receiver = await connect("sender"), await connect("receiver")
    one, rest = Inbox(), Inbox()
    await receiver.subscribe("beat.*.a", one, AbortRequest)
    await receiver.subscribe("beat.>", rest, AbortRequest)
    for number, subject in enumerate(["beat.x.a", "beat.x.b", "beat.y", "beat", "other.x.a", "beat.z.a"]):
        await sender.publish(subject, numbered(number))
    await one.has(2)
    await rest.has(4)
    assert (one.numbers, rest.numbers) == ([0, 5], [0, 1, 2, 5])


async def test_a_beat_is_believed_on_its_senders_own_subject_alone(connect: Connect):
    sender, receiver = await connect("sender"), await connect("receiver")
    heard: asyncio.Queue[Beat] = asyncio.Queue()
    await receiver.subscribe(Beat.SUBJECT.format(role="*", instance="*"), heard.put, Beat)
    mine, leader = InstanceId("decode-1"), InstanceId("scheduler-1")
    own = Beat.SUBJECT.format(role="decode", instance=mine)
    await sender.publish(own, Beat(instance=leader, role="scheduler", number=1))
    await sender.publish(own, Beat(instance=InstanceId("decode-2"), role="decode", number=2))
    odd = Beat.SUBJECT.format(role="decode", instance=leader)
    await sender.publish(odd, Beat(instance=leader, role="decode", number=3))
    await sender.publish(own, Beat(instance=mine, role="decode", number=4))
    assert (await asyncio.wait_for(heard.get(), 5)).number == 4
    assert receiver.troubles.counts["bus_malformed_message"] == 3


async def test_messages_of_other_kinds_are_counted_and_dropped(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()
    await receiver.subscribe("mixed", inbox, AbortRequest)
    await sender.publish("mixed", Accepted(request=numbered(1).request, attempt=1))
    await sender.publish("mixed", numbered(2))
    await inbox.has(1)
    assert inbox.numbers == [2]
    assert +receiver.troubles.counts == {"bus_malformed_message": 1}


async def test_a_failing_handler_does_not_end_the_subscription(connect: Connect):
    asker, answerer = await connect("asker"), await connect("answerer")

    async def fail_on_one(message: AbortRequest) -> Accepted:
        if message.attempt == 1:
            raise RuntimeError("on purpose")
        return await accept(message)

    await answerer.subscribe("fragile", fail_on_one, AbortRequest)
    with pytest.raises(BusTimeout):
        await asker.request("fragile", numbered(1), Accepted, timeout_seconds=0.1)
    assert (await asker.request("fragile", numbered(2), Accepted, timeout_seconds=5)).attempt == 2
    assert +answerer.troubles.counts == {"bus_handler_failed": 1}


async def test_a_plain_function_answers_in_the_order_and_the_trace_of_what_comes(connect: Connect):
    asker, answerer, heard, traces = await connect("asker"), await connect("answerer"), [], []

    def answer(message: AbortRequest) -> Accepted | None:
        heard.append(message.attempt)
        traces.append(trace.get_current_span().get_span_context().trace_id)
        if message.attempt == 50:
            raise RuntimeError("on purpose")
        return Accepted(request=message.request, attempt=message.attempt)

    subscription = await answerer.hear("plain", answer, AbortRequest)
    for number in range(50):
        await asker.publish("plain", numbered(number))
    await asker.publish("plain", Accepted(request=numbered(1).request, attempt=1))
    with pytest.raises(BusTimeout):
        await asker.request("plain", numbered(50), Accepted, timeout_seconds=0.1)
    with trace.use_span(trace.get_current_span(context_from({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}))):
        replies = [asker.request("plain", numbered(51 + n), Accepted, timeout_seconds=5) for n in range(9)]
        assert [reply.attempt for reply in await asyncio.gather(*replies)] == list(range(51, 60))
    assert heard == list(range(60))
    assert traces == [0] * 51 + [int(TRACE, 16)] * 9
    assert +answerer.troubles.counts == {"bus_malformed_message": 1, "bus_handler_failed": 1}
    await subscription.drain()
    with pytest.raises(NoResponder):
        await asker.request("plain", numbered(0), Accepted, timeout_seconds=5)


async def test_handlers_of_one_subscription_run_one_by_one(connect: Connect):
    sender, receiver, done = await connect("sender"), await connect("receiver"), asyncio.Event()
    running, most, handled = 0, 0, 0

    async def slow(message: AbortRequest) -> None:
        nonlocal running, most, handled
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        handled += 1
        if handled == 20:
            done.set()

    await receiver.subscribe("slow", slow, AbortRequest)
    for number in range(20):
        await sender.publish("slow", numbered(number))
    async with asyncio.timeout(5):
        await done.wait()
    assert most == 1


async def test_a_message_that_is_too_big_is_refused_and_harms_nothing(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()
    await receiver.subscribe("big", inbox, AbortRequest)
    with pytest.raises(MessageTooBig, match=r"big: 9000\d\d\d bytes"):
        await sender.publish("big", numbered(1, "x" * 9_000_000))
    with pytest.raises(MessageTooBig):
        await sender.request("big", numbered(1, "x" * 9_000_000), Accepted, timeout_seconds=1)
    await sender.publish("big", numbered(2, "x" * 7_000_000))
    await inbox.has(1)
    assert inbox.numbers == [2]


async def test_the_trace_context_travels_with_requests_and_traced_messages_only(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()
    sender_context = context_from({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    with trace.use_span(trace.get_current_span(sender_context)):
        await receiver.subscribe("traced", inbox, AbortRequest)  # must not colour what arrives later
        await sender.publish("traced", numbered(0))
        await sender.publish("traced", numbered(1), traced=True)
        with pytest.raises(BusTimeout):
            await sender.request("traced", numbered(2), Accepted, timeout_seconds=0.1)
    await sender.publish("traced", numbered(3), traced=True)
    await inbox.has(4)
    assert inbox.traces == [0, int(TRACE, 16), int(TRACE, 16), 0]


async def test_a_drained_subscription_has_handled_what_was_sent_and_gets_no_more(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()

    async def slow(message: AbortRequest) -> None:
        await asyncio.sleep(0.001)
        await inbox(message)

    subscription = await receiver.subscribe("drained", slow, AbortRequest)
    probe = await receiver.subscribe("drained.probe", accept, AbortRequest)
    for number in range(50):
        await sender.publish("drained", numbered(number))
    await sender.request("drained.probe", numbered(0), Accepted, timeout_seconds=5)  # the server has routed all 50
    await subscription.drain()
    assert inbox.numbers == list(range(50))
    await sender.publish("drained", numbered(50))
    await sender.request("drained.probe", numbered(0), Accepted, timeout_seconds=5)
    assert inbox.numbers == list(range(50))
    await subscription.drain()
    await probe.drain()


async def test_a_closed_bus_has_handled_everything_and_takes_nothing_more(connect: Connect):
    sender, receiver, inbox = await connect("sender"), await connect("receiver"), Inbox()
    await receiver.subscribe("closing", inbox, AbortRequest)
    await receiver.subscribe("closing.probe", accept, AbortRequest)
    for number in range(20):
        await sender.publish("closing", numbered(number))
    await sender.request("closing.probe", numbered(0), Accepted, timeout_seconds=5)
    await receiver.close()
    assert inbox.numbers == list(range(20))
    assert receiver.closed.is_set()
    assert not receiver.connected
    with pytest.raises(BusUnavailable):
        await receiver.publish("closing", numbered(1))
    with pytest.raises(BusUnavailable):
        await receiver.subscribe("closing", inbox, AbortRequest)
    await receiver.close()
