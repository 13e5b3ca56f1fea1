"""uvicorn as this gateway runs it: bounds on what comes before a body, errors in OpenAI's form, signals left to us."""

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from services.gateway.protocol import GatewayProtocol
from shared.specs.settings import BadSetting

BACKLOG = 2048
OTHER_FILES = 256  # that a gateway has open beside its clients' connections
KEEP_ALIVE_SECONDS = 75  # longer than the usual 60 of a proxy's pool, so that it is never us who closes first


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

    def __init__(self, app: ASGIApp, most_connections: int, send_seconds: float) -> None:
        """`send_seconds`: for a client to take what is sent."""
        limits = {"most_connections": most_connections, "send_seconds": send_seconds}
        protocol = type("LimitedProtocol", (GatewayProtocol,), limits)
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
