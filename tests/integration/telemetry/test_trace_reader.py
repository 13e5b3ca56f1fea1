"""What the services write is what is read back."""

from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from structlog.testing import capture_logs

from shared.telemetry import traces
from shared.telemetry.trace_file import TraceFile
from shared.telemetry.trace_reader import calls_in, spans_in


def record(folder: Path, instance: str, name: str, **attributes: object) -> None:
    traces.start("gateway", instance, SimpleSpanProcessor(TraceFile(folder, instance)))
    try:
        with traces.tracer().start_as_current_span(name) as span:
            span.set_attributes(attributes)  # pyright: ignore[reportArgumentType]
    finally:
        traces.stop()


def test_a_call_comes_back_with_its_attributes(tmp_path: Path):
    about = {traces.REQUEST_ID: "a", traces.CLIENT_ID: ("mine",), traces.INPUT_TOKENS: 7, traces.TTFT_TARGET: 0.5}
    record(tmp_path, "gateway-1", traces.CHAT_COMPLETIONS, **about)
    record(tmp_path, "gateway-1", "something else", **{traces.REQUEST_ID: "a"})
    (call,) = calls_in(tmp_path)
    assert call.attributes == about | {traces.CLIENT_ID: ["mine"]}
    assert (call.request, call.instance, call.parent) == ("a", "gateway-1", "")
    assert call.end_ns > call.start_ns


def test_the_spans_of_a_trace_are_found_in_every_service_s_files(tmp_path: Path):
    traces.start("gateway", "gateway-1", SimpleSpanProcessor(TraceFile(tmp_path, "gateway-1")))
    with traces.tracer().start_as_current_span(traces.COMPLETIONS) as root:
        headers = traces.current_headers()
    traces.stop()
    traces.start("decode", "decode-1", SimpleSpanProcessor(TraceFile(tmp_path, "decode-1")))
    traces.record_span(traces.DECODE_GENERATE, traces.context_from(headers), 1, 2, {})
    traces.record_span(traces.DECODE_GENERATE, traces.context_from(None), 1, 2, {})
    traces.stop()
    trace = f"{root.get_span_context().trace_id:032x}"
    found = spans_in(tmp_path, [trace])
    assert {span.instance for span in found[trace]} == {"gateway-1", "decode-1"}
    assert len(found[trace]) == 2


def test_a_line_that_is_being_written_is_left_for_the_next_look(tmp_path: Path):
    record(tmp_path, "gateway-1", traces.CHAT_COMPLETIONS, **{traces.REQUEST_ID: "a"})
    path = tmp_path / "gateway-1.jsonl"
    line = path.read_text()
    path.write_text(line + line[:-40])
    assert len(calls_in(tmp_path)) == 1
    assert calls_in(tmp_path / "nothing here") == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"resourceSpans": [{"resource": {}, "scopeSp{"resourceSpans": []}',
        b"\xff\xfe a",
        b'{"resourceSpans": [{}]} a',
        b'{"a": 1}',
    ],
)
def test_a_line_that_nobody_can_read_is_left_out_and_mentioned_once(tmp_path: Path, line: bytes):
    path = tmp_path / "gateway-1.jsonl"
    path.write_bytes(line + b" " + traces.REQUEST_ID.encode() + b"\n")
    record(tmp_path, "gateway-1", traces.CHAT_COMPLETIONS, **{traces.REQUEST_ID: "a"})
    with capture_logs() as logged:
        (call,) = calls_in(tmp_path)
        assert spans_in(tmp_path, [call.trace])[call.trace] == [call]
        assert calls_in(tmp_path) == [call]
    assert [line["event"] for line in logged] == ["trace_lines_skipped"]
