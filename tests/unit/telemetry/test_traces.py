import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from shared.telemetry import traces


def test_spans_of_one_request_share_a_trace_across_services(recorded_spans: InMemorySpanExporter):
    with traces.tracer().start_as_current_span(traces.CHAT_COMPLETIONS, kind=SpanKind.SERVER):
        headers = traces.current_headers()  # rides on the bus
    with traces.within(traces.context_from(headers)):
        onward = traces.current_headers()  # a service that records nothing passes it on
    with traces.tracer().start_as_current_span(traces.KV_TRANSFER, traces.context_from(onward)):
        pass
    server, transfer = recorded_spans.get_finished_spans()
    assert server.context is not None
    assert transfer.context is not None
    assert transfer.parent is not None
    assert transfer.context.trace_id == server.context.trace_id
    assert transfer.parent.span_id == server.context.span_id


def test_a_stage_that_is_over_is_recorded_with_its_own_times(recorded_spans: InMemorySpanExporter):
    now = time.time_ns()
    traces.record_span(traces.SCHEDULER_QUEUE, Context(), now - 2_000_000_000, now - 500, {traces.ATTEMPT: 2})
    (span,) = recorded_spans.get_finished_spans()
    assert (span.name, span.start_time, span.end_time) == ("scheduler.queue", now - 2_000_000_000, now - 500)
    assert dict(span.attributes or {}) == {"distserve.request.attempt": 2}
    assert span.resource.attributes["service.name"] == "distserve-test"


def test_a_span_without_a_parent_does_not_take_the_current_one(recorded_spans: InMemorySpanExporter):
    with traces.tracer().start_as_current_span("current"):
        traces.record_span("other", traces.context_from(None), 1, 2, {})
    other, _ = recorded_spans.get_finished_spans()
    assert other.parent is None


def test_without_a_start_spans_go_nowhere_and_the_context_still_travels():
    parent = traces.context_from({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    with traces.within(parent), traces.tracer().start_as_current_span("x"):
        assert traces.current_headers()["traceparent"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736")
    assert traces.current_headers() == {}


def test_within_another_context_the_current_one_is_gone_and_comes_back():
    first, second = (
        traces.context_from({"traceparent": f"00-{digit * 32}-00f067aa0ba902b7-01"}) for digit in ("1", "2")
    )
    with traces.within(first):
        outside = traces.current_headers()
        for inner in (second, Context(), first):
            with traces.within(inner):
                assert (traces.current_headers() == outside) == (inner is first)
            assert traces.current_headers() == outside
    assert traces.current_headers() == {}


def test_headers_that_are_no_trace_context_give_an_empty_one():
    for headers in ({}, {"traceparent": "garbage"}, {"traceparent": "00-0-0-00"}, {"other": "x"}):
        assert not trace.get_current_span(traces.context_from(headers)).get_span_context().is_valid


def test_no_two_names_are_the_same():
    names = [value for key, value in vars(traces).items() if key.isupper() and isinstance(value, str)]
    assert len(names) > 20
    assert len(set(names)) == len(names)
