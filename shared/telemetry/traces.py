"""One trace per request over all processes: the names of spans and attributes, and how the context travels."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context as current_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

# Spans: the stages of a request's life, in their order
CHAT_COMPLETIONS = "POST /v1/chat/completions"
COMPLETIONS = "POST /v1/completions"
GATEWAY_TOKENIZE = "gateway.tokenize"
SCHEDULER_QUEUE = "scheduler.queue"
PREFILL_QUEUE = "prefill.queue"
PREFILL_FORWARD = "prefill.forward"
KV_TRANSFER = "kv.transfer"
DECODE_QUEUE = "decode.queue"
DECODE_GENERATE = "decode.generate"

# Attributes of our own
REQUEST_ID = "distserve.request.id"
ATTEMPT = "distserve.request.attempt"
CONTEXT_TOKENS = "distserve.context_tokens"
BATCH_REQUESTS = "distserve.batch_requests"
FINISH_REASON = "distserve.finish_reason"
INSTANCE = "distserve.instance"
KV_BLOCKS = "distserve.kv.blocks"
KV_BYTES = "distserve.kv.bytes"
KV_TRANSPORT = "distserve.kv.transport"
KV_MOVE_SECONDS = "distserve.kv.move_seconds"  # first to last byte; the stage has waiting and asking too
TTFT_TARGET = "distserve.slo.ttft_seconds"
TPOT_TARGET = "distserve.slo.tpot_seconds"

# OpenTelemetry's conventions. The GenAI ones are copied: the package that holds them calls every one deprecated
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
CLIENT_ID = "http.request.header.x-request-id"
ERROR_TYPE = "error.type"
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

QUEUED_SPANS = 16384  # a full queue drops spans; the library's 2048 is less than a second of a loaded instance
EXPORT_SECONDS = 1.0  # at most, from a span's end to its export
SETTLE_SECONDS = EXPORT_SECONDS + 0.5  # after a call's end; by then every service has written its spans
STOP_SECONDS = 3.0

_NOTHING_TO_DO = nullcontext()
_PROPAGATOR = TraceContextTextMapPropagator()
_provider: TracerProvider | None = None


def start(role: str, instance: str, processor: SpanProcessor) -> None:
    """Record spans from now on and hand them to `processor`."""
    global _provider
    resource = Resource.create({"service.name": f"distserve-{role}", "service.instance.id": instance})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(processor)


def in_background(exporter: SpanExporter) -> SpanProcessor:
    return BatchSpanProcessor(exporter, max_queue_size=QUEUED_SPANS, schedule_delay_millis=1000 * EXPORT_SECONDS)


def stop() -> None:
    """Hand over what still waits, within STOP_SECONDS: an absent collector must not keep a process from ending."""
    global _provider
    if _provider is not None:
        flushing = threading.Thread(target=_provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(STOP_SECONDS)
        _provider = None


def tracer() -> Tracer:
    return _provider.get_tracer("distserve") if _provider is not None else trace.NoOpTracer()


def record_span(
    name: str,
    context: Context,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, AttributeValue],
    kind: SpanKind = SpanKind.INTERNAL,
) -> None:
    """A span that is already over, such as the wait in a queue. Times as of `time.time_ns()`; parent from `context`."""
    span = tracer().start_span(name, context, kind, dict(attributes), start_time=start_ns)
    span.end(end_ns)


def current_headers() -> dict[str, str]:
    """The current trace context as W3C headers, to be sent along; empty outside of a trace."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def context_from(headers: Mapping[str, str] | None) -> Context:
    """The trace context that came with a message, or an empty one: never what happens to be current here."""
    return _PROPAGATOR.extract(headers, Context()) if headers else Context()


def within(context: Context) -> AbstractContextManager[None]:
    """Make `context` the current one. Costs next to nothing where it is that already, as every message without one."""
    return _NOTHING_TO_DO if context == current_context.get_current() else _attached(context)


@contextmanager
def _attached(context: Context) -> Iterator[None]:
    token = current_context.attach(context)
    try:
        yield
    finally:
        current_context.detach(token)
