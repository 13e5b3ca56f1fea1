"""GET /metrics, /health and /ready on a port of their own, for those who watch: no keys, nothing but facts."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from shared.specs.settings import BadSetting
from shared.telemetry.metrics import ServiceMetrics
from shared.telemetry.settings import TelemetrySettings

log = structlog.get_logger()

BACKLOG = 16
STOP_SECONDS = 2.0


class Status:
    """An ASGI application. `missing` says what keeps the service from taking work; to be set when it can say so."""

    def __init__(self, metrics: ServiceMetrics) -> None:
        self._metrics = metrics
        self.missing: Callable[[], list[str]] = lambda: ["it is starting"]

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        status, content_type, body = self._answer(scope["path"])
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        match path:
            case "/metrics":
                text, content_type = self._metrics.render()
                return 200, content_type, text
            case "/health":
                return _json(200, {"status": "ok"})
            case "/ready":
                missing = self.missing()
                return _json(503, {"status": "not ready", "missing": missing}) if missing else _json(200, READY)
            case _:
                return _json(404, {"paths": ["/metrics", "/health", "/ready"]})


READY = {"status": "ready"}


def _json(status: int, content: object) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(content).encode()


@asynccontextmanager
async def status_server(settings: TelemetrySettings, metrics: ServiceMetrics) -> AsyncIterator[Status]:
    """Serves while the block runs, if a port is set. BadSetting if it cannot be had."""
    status = Status(metrics)
    if settings.metrics_port is None:
        yield status
        return
    listener = _listen(settings.metrics_host, settings.metrics_port)
    log.info("serving_metrics", host=settings.metrics_host, port=listener.getsockname()[1])
    server = _Server(uvicorn.Config(status, ws="none", lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield status
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait([serving], timeout=STOP_SECONDS)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """They are the service's."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where = f"DISTSERVE_METRICS_HOST={host} DISTSERVE_METRICS_PORT={port}"
        raise BadSetting(f"cannot listen on {where}: {error.strerror}") from None
    return listener
