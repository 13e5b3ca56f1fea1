"""uvicorn as this gateway runs it: bounds on what comes before a body, errors in OpenAI's form, signals left to us."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.errors import ApiError
from shared.specs.settings import BadSetting

MOST_HEADER_BYTES = 64 << 10
HEADER_SECONDS = 10.0
BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75  # longer than the usual 60 of a proxy's pool, so that it is never us who closes first


class _HeaderTooLarge(Exception):
    pass


class GatewayProtocol(HttpToolsProtocol):
    """Adds to uvicorn's: a limit and a deadline on the request's head; the application may cut the connection."""

    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self.scope.setdefault("state", {})["cut_connection"] = self.transport.abort
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

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that are not HTTP, or whose head is too large."""
        error = ApiError(400, f"{msg} Its head may have {MOST_HEADER_BYTES} bytes.", code="invalid_http").body()
        head = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(error), error))
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


class GatewayServer(uvicorn.Server):
    """Told to end by `should_exit` alone; then it waits for running responses as long as its caller lets it."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GatewayProtocol,
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
