"""One client's connection: uvicorn's protocol, with deadlines for all that a client could keep it waiting for."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.gateway.errors import ApiError, unavailable

log = structlog.get_logger()

MOST_HEADER_BYTES = 64 << 10
HEADER_SECONDS = 10.0
LEAST_BYTES = 64 << 10  # for a slow client to take each time, if there are more


class _HeaderTooLarge(Exception):
    pass


class _NotRead(Exception):
    """Stops the parser."""


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
    """Adds to uvicorn's: limits on the request's head, on the time for what is sent, and on what comes meanwhile."""

    most_connections = 2**31
    send_seconds = 30.0
    _head_bytes = 0
    _head_deadline: asyncio.TimerHandle | None = None
    _late_message_over = False
    _pipelined = False
    _unsent_bytes = 0
    _send_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > self.most_connections:
            self._refuse(unavailable("This server has as many connections as it can hold"), b"503 Service Unavailable")

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
        super().connection_lost(exc)

    # --- what comes

    def data_received(self, data: bytes) -> None:
        """Never without a deadline afterwards: for the answer, which is the application's; or for the next head."""
        if self._pipelined:
            return
        super().data_received(data)
        if self._answering or self._head_deadline is not None or self.transport.is_closing():
            return
        if self._late_message_over:
            self._late_message_over = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.timeout_keep_alive_task is None:  # an empty line, or more of a message that has its answer
            self._expect_head()

    def on_message_begin(self) -> None:
        if self._answering:  # uvicorn would stop reading, and not notice that the client leaves
            self._pipelined = True
            self.cycle.keep_alive = False
            raise _NotRead
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

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self._answering:
            self._head_arrived()
            self._late_message_over = True

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # --- what is sent

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_sending()  # uvicorn writes the rest without waiting, and closes when it is sent, whenever that is

    def _watch_sending(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None
        self._unsent_bytes = self.transport.get_write_buffer_size()
        if self._unsent_bytes:
            self._send_deadline = self.loop.call_later(self.send_seconds, self._judge_sending)

    def _judge_sending(self) -> None:
        """A client takes the rest in each period, or a good deal of it; while an answer goes on, there is no rest."""
        self._send_deadline = None
        unsent = self.transport.get_write_buffer_size()
        if self._unsent_bytes - unsent >= LEAST_BYTES:
            self._watch_sending()
        elif unsent and (self.flow.write_paused or not self._answering):
            log.warning("slow_client_cut_off", seconds=self.send_seconds, unsent_bytes=unsent)
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to bytes that are not HTTP, or whose head is too large."""
        if self._pipelined:
            return
        error = ApiError(400, f"{msg} Its head may have {MOST_HEADER_BYTES} bytes.", code="invalid_http")
        self._refuse(error, b"400 Bad Request")

    def _refuse(self, error: ApiError, status: bytes) -> None:
        """Without the application, and then no more on this connection."""
        headers = [(b"connection", b"close"), (b"content-type", b"application/json"), *error.headers()]
        body = error.body()
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n%b" % (status, lines, len(body), body))
        self.transport.close()
        self._watch_sending()

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
