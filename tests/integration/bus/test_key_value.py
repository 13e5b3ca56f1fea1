"""What every key-value store promises, in memory and over a real nats-server; then what only a server can do to it."""

import asyncio
import contextlib
import itertools
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from shared.bus import Bucket, Bus, Entry, KeyValue, RevisionChanged, StoreUnavailable
from shared.bus.memory import MemoryBus
from shared.bus.nats import NatsBus
from shared.messages.codec import MalformedMessage
from shared.messages.requests import AbortRequest, Accepted
from shared.specs.ids import RequestId
from tests.nats_server import NatsServer

Connect = Callable[[str], Awaitable[Bus]]
Store = KeyValue[AbortRequest]

names = (f"test-{number}" for number in itertools.count())


def value(number: int) -> AbortRequest:
    return AbortRequest(request=RequestId("r"), attempt=number)


@pytest.fixture
def bucket() -> Bucket:
    """One that no other test uses."""
    return Bucket(next(names))


@pytest.fixture
async def store(connect: Connect, bucket: Bucket) -> Store:
    return (await connect("writer")).key_value(bucket, AbortRequest)


async def test_what_was_written_is_there_for_everybody(connect: Connect, store: Store, bucket: Bucket):
    other = (await connect("reader")).key_value(bucket, AbortRequest)
    first = await store.put("a.b-c_d", value(1))
    assert await other.get("a.b-c_d") == Entry(value(1), first)
    second = await store.put("a.b-c_d", value(2))
    assert second > first
    assert await other.get("a.b-c_d") == Entry(value(2), second)
    assert await other.get("a") is None


async def test_of_two_who_create_the_same_key_one_does(connect: Connect, store: Store, bucket: Bucket):
    other = (await connect("other")).key_value(bucket, AbortRequest)
    results = await asyncio.gather(
        *(one.create("key", value(number)) for number, one in enumerate([store, other] * 5)), return_exceptions=True
    )
    created = [result for result in results if isinstance(result, int)]
    assert len(created) == 1
    assert [type(result) for result in results].count(RevisionChanged) == 9
    entry = await store.get("key")
    assert entry is not None
    assert entry.revision == created[0]
    assert entry.value == value(results.index(created[0]))


async def test_an_update_counts_if_nobody_wrote_in_between(store: Store):
    first = await store.create("key", value(1))
    second = await store.update("key", value(2), first)
    with pytest.raises(RevisionChanged):
        await store.update("key", value(3), first)
    with pytest.raises(RevisionChanged):
        await store.update("other", value(3), second)
    assert await store.get("key") == Entry(value(2), second)


async def test_what_was_deleted_is_gone_and_can_be_created_again(store: Store):
    first = await store.create("key", value(1))
    second = await store.put("key", value(2))
    with pytest.raises(RevisionChanged):
        await store.delete("key", first)
    await store.delete("key", second)
    assert await store.get("key") is None
    with pytest.raises(RevisionChanged):
        await store.update("key", value(3), second)
    assert await store.create("key", value(4)) > second


async def test_a_value_is_gone_when_its_time_is_over(connect: Connect):
    store = (await connect("writer")).key_value(Bucket(next(names), ttl_seconds=0.5), AbortRequest)
    revision = await store.create("key", value(1))
    async with asyncio.timeout(10):
        while await store.get("key") is not None:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)
    with pytest.raises(RevisionChanged):
        await store.update("key", value(2), revision)
    assert await store.create("key", value(3)) > revision


async def test_a_watch_gives_what_is_there_and_what_it_changes_to(connect: Connect, store: Store, bucket: Bucket):
    reader = (await connect("reader")).key_value(bucket, AbortRequest)
    revision = await store.put("key", value(1))
    async with asyncio.timeout(10), contextlib.aclosing(reader.watch("key")) as watch:
        assert await anext(watch) == Entry(value(1), revision)
        for number in range(2, 6):
            revision = await store.put("key", value(number))
            assert await anext(watch) == Entry(value(number), revision)
        await store.put("another", value(9))
        await store.delete("key", revision)
        assert await anext(watch) is None


async def test_a_value_of_another_class_is_malformed(connect: Connect, store: Store, bucket: Bucket):
    await store.put("key", value(1))
    with pytest.raises(MalformedMessage, match="expected Accepted"):
        await (await connect("reader")).key_value(bucket, Accepted).get("key")


@pytest.fixture
async def own(own_server: NatsServer) -> AsyncIterator[NatsBus]:
    async with await NatsBus.connect(own_server.url, name="own", role="gateway") as bus:
        yield bus


async def read_again(store: Store) -> Entry[AbortRequest] | None:
    """As soon as it can be read."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await store.get("key")
            await asyncio.sleep(0.02)


async def update_again(store: Store, new: AbortRequest, revision: int) -> int:
    """As soon as it can be written."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await store.update("key", new, revision)
            await asyncio.sleep(0.02)


async def test_a_value_and_a_watch_outlive_the_server(own_server: NatsServer, own: NatsBus, bucket: Bucket):
    store = own.key_value(bucket, AbortRequest)
    async with asyncio.timeout(20), contextlib.aclosing(store.watch("key")) as watch:
        first = await store.put("key", value(1))
        assert await anext(watch) == Entry(value(1), first)
        await own_server.restart(down_seconds=0.2)
        assert await read_again(store) == Entry(value(1), first)
        second = await update_again(store, value(2), first)
        assert await anext(watch) == Entry(value(2), second)


async def test_where_the_disk_was_lost_the_bucket_is_made_anew_and_revisions_go_on(
    own_server: NatsServer, own: NatsBus, bucket: Bucket
):
    store = own.key_value(bucket, AbortRequest)
    lost = 0
    for number in range(20):
        lost = await store.put("key", value(number))
    own_server.stop(signal.SIGKILL)
    shutil.rmtree(own_server.store)
    own_server.start()
    with pytest.raises(RevisionChanged):
        await update_again(store, value(20), lost)
    assert await store.get("key") is None
    assert await store.create("key", value(21)) > lost


async def test_a_bucket_keeps_its_values_as_long_as_its_present_writer_says(own: NatsBus, bucket: Bucket):
    first = await own.key_value(bucket, AbortRequest).put("key", value(1))
    brief = own.key_value(Bucket(bucket.name, ttl_seconds=0.3), AbortRequest)
    assert await brief.put("other", value(2)) > first
    async with asyncio.timeout(10):
        while await brief.get("other") is not None:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def test_what_stood_in_the_way_of_a_create_may_expire_before_it_is_looked_at(
    own: NatsBus, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    store = own.key_value(bucket, AbortRequest)
    await store.create("key", value(1))
    look = store._inner._get

    async def expire_and_look(key: str):
        await own._client.jetstream().purge_stream(f"KV_{bucket.name}")
        return await look(key)

    monkeypatch.setattr(store._inner, "_get", expire_and_look)
    with pytest.raises(RevisionChanged):
        await store.create("key", value(2))
    assert await store.create("key", value(3)) > 0


async def test_a_full_bucket_says_so_and_the_bus_goes_on(own: NatsBus, bucket: Bucket):
    store = own.key_value(bucket, AbortRequest)
    big = AbortRequest(request=RequestId("r" * 200_000), attempt=0)
    with pytest.raises(StoreUnavailable):
        await asyncio.gather(*(store.put(f"key-{number}", big) for number in range(10)))
    await own.subscribe("ask", echo, AbortRequest)
    assert await own.request("ask", value(7), AbortRequest, timeout_seconds=5) == value(7)


async def test_without_a_store_or_a_server_it_is_unavailable_at_once(tmp_path: Path, bucket: Bucket):
    config = tmp_path / "core.conf"
    config.write_text("jetstream: disabled\n")
    server = NatsServer(tmp_path, config, keeps=False)
    server.start()
    async with await NatsBus.connect(server.url, name="bus", role="gateway") as bus:
        store = bus.key_value(bucket, AbortRequest)
        async with asyncio.timeout(1):
            for attempt in (store.get("key"), store.create("key", value(1)), store.put("key", value(1))):
                with pytest.raises(StoreUnavailable):
                    await attempt
        await bus.subscribe("ask", echo, AbortRequest)
        assert await bus.request("ask", value(7), AbortRequest, timeout_seconds=5) == value(7)
        server.stop()
        async with asyncio.timeout(5):
            while bus.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        with pytest.raises(StoreUnavailable):
            await store.get("key")


async def test_in_memory_the_store_can_be_taken_away(bucket: Bucket):
    hub = MemoryBus()
    async with hub.connect("one") as bus:
        store = bus.key_value(bucket, AbortRequest)
        revision = await store.put("key", value(1))
        hub.store.available = False
        for attempt in (store.get("key"), store.create("key", value(2)), store.update("key", value(2), revision)):
            with pytest.raises(StoreUnavailable):
                await attempt
        hub.store.available = True
        assert await store.get("key") == Entry(value(1), revision)


async def echo(message: AbortRequest) -> AbortRequest:
    return message
