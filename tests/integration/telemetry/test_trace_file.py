import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from shared.telemetry import traces
from shared.telemetry.trace_file import KEPT_FILES, TraceFile
from tests.recorded_spans import recorded_spans

__all__ = ["recorded_spans"]


@pytest.fixture
def spans(recorded_spans: InMemorySpanExporter) -> tuple[ReadableSpan, ...]:
    with traces.tracer().start_as_current_span("outer") as outer:
        traces.record_span("inner", traces.context_from(traces.current_headers()), 1, 2, {traces.KV_BYTES: 5})
        linked = outer.get_span_context()
    traces.tracer().start_span("linking", links=[traces.trace.Link(linked)]).end()
    return recorded_spans.get_finished_spans()


def read(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


def test_spans_are_otlp_json_with_hex_ids(tmp_path: Path, spans: tuple[ReadableSpan, ...]):
    TraceFile(tmp_path, "prefill-1").export(spans)
    inner, outer, linking = read(tmp_path / "prefill-1.jsonl")
    context = spans[1].context
    assert context is not None
    assert outer["traceId"] == f"{context.trace_id:032x}"
    assert (inner["traceId"], inner["parentSpanId"]) == (outer["traceId"], outer["spanId"])
    assert linking["links"][0]["spanId"] == outer["spanId"]
    assert inner["attributes"] == [{"key": "distserve.kv.bytes", "value": {"intValue": "5"}}]
    assert (inner["startTimeUnixNano"], inner["endTimeUnixNano"]) == ("1", "2")


def test_the_files_stay_within_their_bound_and_keep_the_newest(tmp_path: Path, spans: tuple[ReadableSpan, ...]):
    exporter = TraceFile(tmp_path, "prefill-1", file_bytes=4000)
    for _ in range(40):
        assert exporter.export(spans) is SpanExportResult.SUCCESS
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"prefill-1.jsonl", "prefill-1.old.jsonl"}
    assert all(0 < size <= 4000 for size in sizes.values())
    assert len(list(read(tmp_path / "prefill-1.old.jsonl"))) % len(spans) == 0


def test_files_of_earlier_processes_are_removed_oldest_first(tmp_path: Path, spans: tuple[ReadableSpan, ...]):
    for age in range(KEPT_FILES + 5):
        path = tmp_path / f"old-{age:02}.jsonl"
        path.touch()
        os.utime(path, (0, 10_000 - age))
    TraceFile(tmp_path, "prefill-1").export(spans)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == KEPT_FILES - 1
    assert {"prefill-1.jsonl", "old-00.jsonl"} <= left
    assert f"old-{KEPT_FILES + 4}.jsonl" not in left


def test_a_folder_that_cannot_be_written_loses_spans_and_says_so_once(tmp_path: Path, spans: tuple[ReadableSpan, ...]):
    (tmp_path / "file").touch()
    exporter = TraceFile(tmp_path / "file", "prefill-1")
    with capture_logs() as logged:
        assert exporter.export(spans) is SpanExportResult.FAILURE
        assert exporter.export(spans) is SpanExportResult.FAILURE
    assert [line["event"] for line in logged] == ["traces_not_written"]


def test_a_full_disk_leaves_no_part_of_a_line_behind(tmp_path: Path, spans: tuple[ReadableSpan, ...]):
    exporter = TraceFile(tmp_path, "prefill-1")
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    size = (tmp_path / "prefill-1.jsonl").stat().st_size
    with files_of_at_most(size + size // 2):
        assert exporter.export(spans) is SpanExportResult.FAILURE
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert len(list(read(tmp_path / "prefill-1.jsonl"))) == 2 * len(spans)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A write that goes beyond takes a part, and the next one is refused: as on a full disk."""
    limits = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        setrlimit(RLIMIT_FSIZE, limits)


def test_stopping_writes_what_still_waits(tmp_path: Path):
    traces.start("decode", "decode-1", traces.in_background(TraceFile(tmp_path, "decode-1")))
    with traces.tracer().start_as_current_span("last"):
        pass
    traces.stop()
    assert [span["name"] for span in read(tmp_path / "decode-1.jsonl")] == ["last"]


def test_stopping_does_not_wait_for_an_exporter_that_hangs(monkeypatch: pytest.MonkeyPatch):
    class Hanging(InMemorySpanExporter):
        def shutdown(self) -> None:
            time.sleep(2)

    monkeypatch.setattr(traces, "STOP_SECONDS", 0.1)
    traces.start("decode", "decode-1", traces.in_background(Hanging()))
    started = time.monotonic()
    traces.stop()
    assert time.monotonic() - started < 1
