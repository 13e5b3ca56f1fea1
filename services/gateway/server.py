"""uvicorn as this gateway runs it: bounds on what comes before a body, errors in OpenAI's form, signals left to us."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.gateway.errors import ApiError, unavailable
from shared.specs.settings import BadSetting

MOST_HEADER_BYTES = 64 << 10
HEADER_SECONDS = 10.0
BACKLOG = 2048
OTHER_FILES = 256  # that a gateway has open beside its clients' connections
KEEP_ALIVE_SECONDS = 75  # longer than the usual 60 of a proxy's pool, so that it is never us who closes first


class _HeaderTooLarge(Exception):
    pass


class ClientConnection:
    """For one request and its response: what is beyond ASGI."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport, self._flow = cycle.transport, cycle.flow

    def write_now(self, data: bytes) -> bool:
        """More of a body that is sent in chunks, as `send` would. False if it is not, or if `send` would wait."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding or cycle.disconnected or cycle.response_complete:
            return False
        if data:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    @contextmanager
    def one_write(self) -> Iterator[None]:
        gathered = _Gathered()
        self._cycle.transport = gathered  # pyright: ignore[reportAttributeAccessIssue]  (it is one for what is done here)
        try:
            yield
        finally:
            self._cycle.transport = self._transport
            self._transport.write(b"".join(gathered.pieces))

    def cut(self) -> None:
        self._transport.abort()


class _Gathered:
    """Of a transport only what a response's beginning needs: it keeps what is written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.write = self.pieces.append


class GatewayProtocol(HttpToolsProtocol):
    """Adds to uvicorn's: a limit and a deadline on the request's head; the application may cut the connection."""

    most_connections = 2**31
    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > self.most_connections:
            self._refuse(unavailable("This server has as many connections as it can hold"), b"503 Service Unavailable")

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope.setdefault("state", {})["connection"] = ClientConnection(self.cycle)

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that are not HTTP, or whose head is too large."""
        error = ApiError(400, f"{msg} Its head may have {MOST_HEADER_BYTES} bytes.", code="invalid_http")
        self._refuse(error, b"400 Bad Request")

    def _refuse(self, error: ApiError, status: bytes) -> None:
        """Without the application, and then no more on this connection."""
        headers = [(b"connection", b"close"), (b"content-type", b"application/json"), *error.headers()]
        body = error.body()
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MOST_HEADER_BYTES:
            raise _HeaderTooLarge  # httptools makes its own error of it, and uvicorn answers 400

    def _expect_head(self) -> None:
        self._head_arrived()
        self._head_deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _head_arrived(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; BadSetting if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where it sees TCP named; with it, every small write waits for an ack
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise BadSetting(f"cannot listen on DISTSERVE_HOST={host} DISTSERVE_PORT={port}: {error.strerror}") from None
    return listener


def room_for_connections(wanted: int) -> int:
    """`wanted`, or as many as this process may have open files; asks for as many as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < files:
        soft = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - OTHER_FILES)
    return wanted


class GatewayServer(uvicorn.Server):
    """Told to end by `should_exit` alone; then it waits for running responses as long as its caller lets it."""

    def __init__(self, app: ASGIApp, most_connections: int) -> None:
        protocol = type("LimitedProtocol", (GatewayProtocol,), {"most_connections": most_connections})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield

    def cut_all(self) -> None:
        """Drop the connections that are still there."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()
