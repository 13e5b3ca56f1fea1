"""What only a real server can do to us: restarts, refusals, full buffers; and where nats-py would lose messages."""

import asyncio
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import nkeys
import pytest

import shared.bus.nats
from shared.bus import BusTimeout, BusUnavailable, MessageTooBig, NoResponder
from shared.bus.nats import HEADER_ROOM_BYTES, NatsBus
from shared.bus.settings import BusSettings
from shared.messages.codec import encode
from shared.messages.requests import AbortRequest, Accepted
from shared.specs.ids import RequestId
from tests.nats_server import NatsServer

Connect = Callable[..., Awaitable[NatsBus]]


def numbered(number: int, text: str = "r") -> AbortRequest:
    return AbortRequest(request=RequestId(text), attempt=number)


async def accept(message: AbortRequest) -> Accepted:
    return Accepted(request=message.request, attempt=message.attempt)


async def ignore(message: AbortRequest) -> None:
    pass


async def until(condition: Callable[[], bool]) -> None:
    """For what happens in another process and sends no event."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with AsyncExitStack() as connections:

        async def open_connection(
            server: NatsServer | BusSettings, name: str = "bus", role: str = "gateway"
        ) -> NatsBus:
            where = server.url if isinstance(server, NatsServer) else server
            return await connections.enter_async_context(await NatsBus.connect(where, name=name, role=role))

        yield open_connection


def server_with(folder: Path, extra_config: str) -> NatsServer:
    config = folder / "nats.conf"
    config.write_text(extra_config)
    server = NatsServer(folder, config)
    server.start()
    return server


async def test_subscriptions_are_live_again_when_the_reconnect_callbacks_run(own_server: NatsServer, connect: Connect):
    asker, answerer = await connect(own_server, "asker"), await connect(own_server, "answerer")
    replies: asyncio.Queue[Accepted] = asyncio.Queue()

    async def ask_again() -> None:
        replies.put_nowait(await answerer.request("ask", numbered(3), Accepted, timeout_seconds=2))

    await answerer.subscribe("ask", accept, AbortRequest)
    answerer.on_reconnect(ask_again)
    await own_server.restart(down_seconds=0.2)
    async with asyncio.timeout(5):
        assert (await replies.get()).attempt == 3
    assert (await asker.request("ask", numbered(4), Accepted, timeout_seconds=2)).attempt == 4


async def test_a_stream_goes_on_after_a_server_restart(own_server: NatsServer, connect: Connect):
    sender, receiver = await connect(own_server, "sender"), await connect(own_server, "receiver")
    received: list[int] = []
    restarted, over = asyncio.Event(), asyncio.Event()

    async def take(message: AbortRequest) -> None:
        received.append(message.attempt)
        if restarted.is_set():
            over.set()

    async def send() -> None:
        for number in itertools.takewhile(lambda _: not over.is_set(), itertools.count()):
            await sender.publish("stream", numbered(number))
            await asyncio.sleep(0.002)

    await receiver.subscribe("stream", take, AbortRequest)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(send())
        await until(lambda: len(received) > 10)
        await own_server.restart(down_seconds=0.2)
        restarted.set()
    assert received[:10] == list(range(10))
    assert received == sorted(set(received))


async def test_a_subscription_made_while_the_server_is_down_is_live_when_it_returns(
    own_server: NatsServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared.bus.nats, "FLUSH_SECONDS", 0.05)
    asker, answerer = await connect(own_server, "asker"), await connect(own_server, "answerer")
    own_server.stop(signal.SIGKILL)
    subscribing = asyncio.create_task(answerer.subscribe("late", accept, AbortRequest))
    await asyncio.sleep(0.3)
    assert not subscribing.done()
    own_server.start()
    await subscribing
    await until(lambda: asker.connected)
    assert (await asker.request("late", numbered(1), Accepted, timeout_seconds=2)).attempt == 1


async def test_draining_one_member_of_a_busy_queue_group_loses_no_request(nats_server: NatsServer, connect: Connect):
    asker, stable, leaving = [await connect(nats_server, name) for name in ("asker", "stable", "leaving")]
    await stable.subscribe("busy", accept, AbortRequest, queue="group")
    stop = asyncio.Event()
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while not stop.is_set():
            await asker.request("busy", numbered(answered), Accepted, timeout_seconds=5)
            answered += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(ask())
        for _ in range(100):
            subscription = await leaving.subscribe("busy", accept, AbortRequest, queue="group")
            await subscription.drain()
        stop.set()
    assert answered > 100


async def test_a_request_right_after_subscribing_finds_the_subscription(nats_server: NatsServer, connect: Connect):
    asker, answerer = await connect(nats_server, "asker"), await connect(nats_server, "answerer")
    for number in range(150):
        await answerer.subscribe(f"fresh.{number}", accept, AbortRequest)
        await asker.request(f"fresh.{number}", numbered(number), Accepted, timeout_seconds=5)


async def test_a_message_leaves_at_once_even_if_the_publisher_then_blocks_its_loop(
    nats_server: NatsServer, connect: Connect
):
    sender = await connect(nats_server)
    host, port = nats_server.url.removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as reader:
        reader.sendall(b"CONNECT {}\r\nSUB now 1\r\nPING\r\n")
        while b"PONG" not in reader.recv(65536):
            pass
        arrived: list[float] = []
        waiting = threading.Thread(target=lambda: arrived.append(time.monotonic() if reader.recv(1) else 0.0))
        waiting.start()
        await sender.publish("now", numbered(1))
        sent = time.monotonic()
        time.sleep(0.5)  # noqa: ASYNC251 (a step of computation on the loop's own thread)
        waiting.join()
    assert arrived[0] - sent < 0.25


async def test_what_is_said_in_one_turn_is_heard_in_its_order_however_it_is_said(
    nats_server: NatsServer, connect: Connect
):
    sender, receiver, heard = await connect(nats_server, "sender"), await connect(nats_server, "receiver"), []
    await receiver.hear("mixed", lambda message: heard.append(message.attempt) or message, AbortRequest)
    asking = []
    for number in range(0, 300, 3):
        asking.append(asyncio.create_task(sender.request("mixed", numbered(number), AbortRequest, timeout_seconds=5)))
        await asyncio.sleep(0)  # it has been said, and waits for the end of the turn
        await sender.publish("mixed", numbered(number + 1), traced=True)
        await sender._client.publish("mixed", encode(numbered(number + 2)))  # as nats-py's own parts do
    await asyncio.gather(*asking)
    await until(lambda: len(heard) == 300)
    assert heard == list(range(300))


async def test_a_server_that_does_not_read_for_a_while_gets_everything_in_order(
    own_server: NatsServer, connect: Connect
):
    sender, receiver, heard = await connect(own_server, "sender"), await connect(own_server, "receiver"), []
    await receiver.hear("slow", lambda message: heard.append(message.attempt), AbortRequest)
    own_server.pause()
    for number in range(30):
        await sender.publish("slow", numbered(number, "x" * 400_000))
    asking = asyncio.create_task(sender.request("slow.nobody", numbered(0), Accepted, timeout_seconds=5))
    await asyncio.sleep(0.1)
    own_server.resume()
    with pytest.raises(NoResponder):
        await asking
    await until(lambda: len(heard) == 30)
    assert heard == list(range(30))
    assert sender._client.pending_data_size == 0


async def test_what_a_server_does_not_read_is_kept_up_to_a_bound_even_if_nobody_waits(
    own_server: NatsServer, connect: Connect
):
    bus = await connect(own_server)
    own_server.pause()

    def post_for_ever() -> None:
        for number in itertools.count():
            bus.post("slow", numbered(number, "x" * 1_000_000))

    with pytest.raises(BusUnavailable, match="buffer"):
        post_for_ever()
    assert bus._client.pending_data_size < 20_000_000
    own_server.resume()
    await until(lambda: bus._client.pending_data_size == 0)
    bus.post("slow", numbered(0))
    assert await bus.round_trip()


@pytest.mark.parametrize("credentials", ["", "gateway:wrong@"])
async def test_a_refused_login_fails_at_once_and_shows_no_password(tmp_path: Path, credentials: str):
    server = server_with(tmp_path, "authorization { user: gateway, password: right }")
    try:
        started = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"Authorization Violation.*NATS_URL") as refusal:
            await NatsBus.connect(server.url.replace("//", f"//{credentials}"), name="bus", role="gateway")
        assert time.monotonic() - started < 2
        assert "wrong" not in str(refusal.value)
        assert server.url.removeprefix("nats://") in str(refusal.value)
    finally:
        server.stop()


async def test_an_absent_server_fails_at_once_and_says_where_it_was_looked_for(own_server: NatsServer):
    own_server.stop()
    started = time.monotonic()
    with pytest.raises(BusUnavailable, match=r"nats://127\.0\.0\.1:\d+: .*is the server running"):
        await NatsBus.connect(own_server.url, name="bus", role="gateway")
    assert time.monotonic() - started < 2
    own_server.start()


async def test_a_key_from_a_seed_file_lets_us_in(tmp_path: Path, connect: Connect):
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = bytes(nkeys.from_seed(bytearray(seed)).public_key).decode()
    (tmp_path / "seed").write_bytes(seed)
    server = server_with(tmp_path, f"authorization {{ users: [ {{ nkey: {public} }} ] }}")
    try:
        bus = await connect(BusSettings(url=server.url, nkey_seed_file=tmp_path / "seed"))
        assert bus.connected
        await bus.close()
    finally:
        server.stop()


async def test_what_the_server_forbids_is_counted(tmp_path: Path, connect: Connect):
    rules = "permissions: { publish: [allowed], subscribe: [allowed, _INBOX_gateway.>] }"
    server = server_with(tmp_path, f"authorization {{ users: [ {{ user: a, password: b, {rules} }} ] }}")
    try:
        bus = await connect(BusSettings(url=server.url.replace("//", "//a:b@")))
        with pytest.raises(BusTimeout):
            await bus.request("forbidden", numbered(1), Accepted, timeout_seconds=0.2)
        assert +bus.troubles.counts == {"bus_permission_violation": 1}
        await bus.close()
    finally:
        server.stop()


async def test_headers_count_towards_the_biggest_message(nats_server: NatsServer, connect: Connect):
    """The server closes the connection of a client whose headers and payload together are above max_payload."""
    bus = await connect(nats_server)
    for size in (8 * 2**20 - 60, 8 * 2**20 - HEADER_ROOM_BYTES):
        with pytest.raises(MessageTooBig):
            await bus.publish("near", numbered(1, "x" * size), traced=True)
    await bus.publish("near", numbered(1, "x" * (8 * 2**20 - HEADER_ROOM_BYTES - 60)), traced=True)
    await bus.subscribe("near", ignore, AbortRequest)
    assert bus.connected


async def test_bytes_that_are_no_message_are_counted_and_dropped(nats_server: NatsServer, connect: Connect):
    bus = await connect(nats_server)
    subscription = await bus.subscribe("garbage", ignore, AbortRequest)
    good = encode(numbered(1))
    with socket.create_connection(("127.0.0.1", int(nats_server.url.rpartition(":")[2])), timeout=5) as writer:
        for data in (b"", b"\xc1", b"{}", good[:-1], good + b"!", good):
            writer.sendall(b"PUB garbage %d\r\n%b\r\n" % (len(data), data))
        writer.sendall(b"CONNECT {}\r\nPING\r\n")
        while b"PONG" not in writer.recv(65536):
            pass
    await subscription.drain()
    assert +bus.troubles.counts == {"bus_malformed_message": 5}


async def test_publishing_into_a_long_outage_is_refused_when_the_buffer_is_full(
    own_server: NatsServer, connect: Connect
):
    bus = await connect(own_server)
    own_server.stop(signal.SIGKILL)
    await until(lambda: not bus.connected)
    for number in range(2):
        await bus.publish("nowhere", numbered(number, "x" * 3_000_000))
    with pytest.raises(BusUnavailable, match="buffer"):
        await bus.publish("nowhere", numbered(2, "x" * 3_000_000))
    await bus.close()
    assert bus.closed.is_set()
    own_server.start()


async def test_closing_while_the_server_is_gone_finishes_what_has_arrived_and_does_not_wait_for_more(
    own_server: NatsServer, connect: Connect
):
    bus, started, finish, handled = await connect(own_server), asyncio.Event(), asyncio.Event(), []

    async def slow(message: AbortRequest) -> None:
        started.set()
        await finish.wait()
        handled.append(message.attempt)

    await bus.subscribe("slow", slow, AbortRequest)
    await bus.publish("slow", numbered(1))
    await bus.publish("slow", numbered(2))
    async with asyncio.timeout(5):
        await started.wait()
        await bus.round_trip()
    own_server.stop(signal.SIGKILL)
    async with asyncio.timeout(3):
        closing = asyncio.create_task(bus.close())
        finish.set()
        await closing
    assert handled == [1, 2]
    own_server.start()


async def test_a_silent_server_counts_as_a_timeout_not_as_forever(own_server: NatsServer, connect: Connect):
    bus = await connect(own_server)
    own_server.pause()
    try:
        with pytest.raises(BusTimeout):
            await bus.request("paused", numbered(1), Accepted, timeout_seconds=0.2)
    finally:
        own_server.resume()


async def test_a_connection_that_the_server_ends_for_good_is_seen_as_closed(nats_server: NatsServer, connect: Connect):
    bus = await connect(nats_server)
    await bus.subscribe("closed", ignore, AbortRequest)
    await bus._client._send_command(b"NONSENSE\r\n")  # what a broken client sends: the server says -ERR and hangs up
    await bus._client._flush_pending()
    async with asyncio.timeout(5):
        await bus.closed.wait()
    assert not bus.connected
    with pytest.raises(BusUnavailable):
        await bus.publish("closed", numbered(1))
    async with asyncio.timeout(1):
        await bus.close()


def test_the_projects_configuration_is_what_the_server_runs_with(nats_server: NatsServer):
    with socket.create_connection(("127.0.0.1", int(nats_server.url.rpartition(":")[2])), timeout=5) as client:
        info = json.loads(client.makefile().readline().removeprefix("INFO "))
    assert info["max_payload"] == 8 * 2**20
    assert info["server_name"] == "distserve-nats"
    assert info["jetstream"]
