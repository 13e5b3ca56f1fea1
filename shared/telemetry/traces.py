"""Trace context across the bus."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def current_headers() -> dict[str, str]:
    """The current trace context as W3C headers, to be sent along; empty outside of a trace."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def context_from(headers: Mapping[str, str] | None) -> Context:
    """The trace context that came with a message, or an empty one: never what happens to be current here."""
    return _PROPAGATOR.extract(headers, Context()) if headers else Context()


@contextmanager
def received_context(headers: Mapping[str, str] | None) -> Iterator[None]:
    """Make the sender's trace context current."""
    token = context.attach(context_from(headers))
    try:
        yield
    finally:
        context.detach(token)
