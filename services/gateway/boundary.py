"""The outermost layer: request ids, API keys, the root span, and what becomes of an exception."""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import ApiError, http_error, internal_error, too_many, wrong_key
from services.gateway.keys import Holder, KeyRing
from shared.telemetry import traces
from shared.telemetry.metrics import GatewayMetrics

log = structlog.get_logger()

OPEN_PATHS = frozenset(("/health", "/live", "/ready", "/ui"))  # the page itself holds nothing
TRACED_PATHS = frozenset(("/v1/chat/completions", "/v1/completions"))
LIMITED_PATHS = TRACED_PATHS | {"/tokenize", "/detokenize"}
OTHER_PATHS = OPEN_PATHS | {
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/metrics",
    "/version",
    "/openapi.json",
    "/ui/state",
}
NOT_IN_A_REQUEST_ID = re.compile(r"[^A-Za-z0-9._-]")
MOST_REQUEST_ID_CHARS = 64


class Boundary:
    """Around the whole application. Puts `call` into the scope's state: a name that no other call has anywhere."""

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        given = NOT_IN_A_REQUEST_ID.sub("", headers.get("x-request-id", ""))[:MOST_REQUEST_ID_CHARS]
        call = f"{given}.{secrets.token_hex(4)}" if given else secrets.token_hex(16)
        request_id = given or call
        scope.setdefault("state", {})["call"] = call
        scope["app"] = self  # then Starlette's router raises its 404 and 405 instead of answering in plain text
        status = 0  # nothing was sent

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            with structlog.contextvars.bound_contextvars(request_id=call), _root_span(scope, headers) as span:
                try:
                    with self._admitted(scope, headers):
                        await self._app(scope, receive, send_with_id)
                except Exception as error:
                    response = error_response(error)
                    if status == 0:
                        await response(scope, receive, send_with_id)
                    else:
                        scope["state"]["connection"].cut()  # it must not look complete
                        await asyncio.sleep(0)  # for uvicorn to hear of it, or it takes the response for forgotten
                span.set_attribute(traces.HTTP_STATUS, status)
                if given:
                    span.set_attribute(traces.CLIENT_ID, (given,))
                if status >= 500:
                    span.set_status(StatusCode.ERROR)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.responses.labels(_route(scope["path"]), str(status)).inc()

    @contextmanager
    def _admitted(self, scope: Scope, headers: Headers) -> Iterator[None]:
        """ApiError if the key is wrong or has used up what it may. Only what is computed counts."""
        path = scope["path"]
        if path in OPEN_PATHS:
            yield
            return
        holder = self._keys.holder(headers.get("authorization", ""))
        if holder is None:
            raise wrong_key()
        if path not in LIMITED_PATHS:
            yield
            return
        share = scope["state"]["share"] = Share(holder)
        try:
            share.grow_to(1)
            yield
        finally:
            holder.end(share.count)


class Share:
    """What one call has of what its key may have."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self.count = 0

    def grow_to(self, count: int) -> None:
        """ApiError if that is more than there is."""
        seconds = 0.0
        if count <= self._holder.limits.most:
            seconds = self._holder.begin(time.monotonic(), count - self.count)
        if seconds > 0 or count > self._holder.limits.most:
            raise too_many(self._holder.limits, count, seconds)
        self.count = count


def error_response(error: Exception) -> Response:
    """What the client is told; nothing of the inside. What is our fault is logged with its traceback."""
    match error:
        case ApiError():
            told = error
            log.info("request_refused", status=error.status, code=error.code, message=error.message)
        case HTTPException():
            told = http_error(error.status_code)
        case _:
            told = internal_error()
            log.error("request_failed", exc_info=error)
    response = Response(told.body(), told.status, media_type="application/json")
    response.raw_headers.extend(told.headers())
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


@contextmanager
def _root_span(scope: Scope, headers: Headers) -> Iterator[Span]:
    """The request's root span, or the child of the one that the client names."""
    path = scope["path"]
    if path not in TRACED_PATHS:
        yield INVALID_SPAN
        return
    attributes = {traces.HTTP_METHOD: scope["method"], traces.HTTP_ROUTE: path}
    with traces.tracer().start_as_current_span(
        f"{scope['method']} {path}", traces.context_from(headers), SpanKind.SERVER, attributes=attributes
    ) as span:
        yield span


def _route(path: str) -> str:
    """A label of few values, whatever clients ask for."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    if path.startswith("/ui/requests/"):
        return "/ui/requests/{request}"
    return path if path in TRACED_PATHS or path in OTHER_PATHS else "other"
