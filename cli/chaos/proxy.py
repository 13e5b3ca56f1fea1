"""A TCP proxy before a server: what goes through it can be cut, hang or crawl, and nobody else's connection with it."""

import asyncio
import socket
from contextlib import suppress

READ_BYTES = 1 << 16
CRAWL_SECONDS = 1.0  # for a byte
LEAST_BUFFER_BYTES = 4096


class Proxy:
    """Made by `start`."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._flows.set()
        self._crawls = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(cls, target_port: int) -> "Proxy":
        proxy = cls(target_port)
        proxy._server = await asyncio.start_server(proxy._connected, "127.0.0.1", 0)
        return proxy

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End the connections that are open now."""
        for writer in self._writers:
            writer.transport.abort()

    def hang(self) -> None:
        """They stay open, and nothing comes through."""
        self._flows.clear()

    def crawl(self) -> None:
        """What the server says comes through one byte after the other, and little of it waits here."""
        self._crawls = True

    def flow(self) -> None:
        self._crawls = False
        self._flows.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.flow()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours = {writer}
        try:
            there, back = await self._connect()
            ours.add(back)
            self._writers |= ours
            pumps = [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump_back(there, writer))]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:  # nobody listens there just now: nor does anybody here
            pass
        finally:
            self._writers -= ours
            for one in ours:
                one.transport.abort()
                with suppress(OSError):
                    await one.wait_closed()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setblocking(False)
        if self._crawls:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LEAST_BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._target_port))
        return await asyncio.open_connection(sock=connection, limit=LEAST_BUFFER_BYTES if self._crawls else READ_BYTES)

    async def _pump_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while self._crawls and (data := await reader.read(1)):
                writer.write(data)
                await asyncio.sleep(CRAWL_SECONDS)
        await self._pump(reader, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
