"""The proxy of `./distserve chaos`, before a server that echoes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from cli.chaos.proxy import Proxy


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        await closed(writer)

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        proxy = await Proxy.start(server.sockets[0].getsockname()[1])
        yield proxy
        await proxy.close()


async def said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, word: bytes) -> bytes:
    writer.write(word)
    return await reader.read(100)


async def closed(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_connection_that_is_cut_ends_and_the_next_one_works(proxy: Proxy):
    first = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_back(*first, b"hello") == b"hello"
    proxy.cut()
    with suppress(ConnectionResetError):  # closed in order is as good
        assert await first[0].read(100) == b""
    second = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_back(*second, b"again") == b"again"
    await closed(first[1], second[1])


async def test_a_connection_that_hangs_loses_nothing(proxy: Proxy):
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await said_back(reader, writer, b"hello") == b"hello"
    proxy.hang()
    waiting = asyncio.create_task(said_back(reader, writer, b"late"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    proxy.flow()
    assert await waiting == b"late"
    await closed(writer)


async def test_a_connection_that_crawls_brings_byte_after_byte_and_loses_none(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cli.chaos.proxy.CRAWL_SECONDS", 0.05)
    proxy.crawl()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    first = await said_back(reader, writer, b"hello")
    assert 0 < len(first) < len(b"hello")
    proxy.flow()
    assert first + await reader.readexactly(len(b"hello") - len(first)) == b"hello"
    await closed(writer)
