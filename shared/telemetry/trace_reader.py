"""The trace files of all services of a run, read back: spans, and which of them belong to a request."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import structlog

from shared.telemetry import traces

log = structlog.get_logger()

MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One finished span. Times are Unix nanoseconds."""

    trace: str
    id: str
    parent: str
    name: str
    instance: str  # of the process that recorded it
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]

    @property
    def request(self) -> str:
        return self.attributes.get(traces.REQUEST_ID, "")

    @property
    def attempt(self) -> int:
        return self.attributes.get(traces.ATTEMPT, 0)


def calls_in(folder: Path) -> list[Span]:
    """The root spans of all calls that the gateways recorded, oldest first."""
    spans = (span for path in folder.glob("gateway-*.jsonl") for span in _spans_of(path, traces.REQUEST_ID))
    roots = [span for span in spans if span.name in (traces.CHAT_COMPLETIONS, traces.COMPLETIONS) and span.request]
    return sorted(roots, key=lambda span: span.end_ns)


def spans_in(folder: Path, trace_ids: Iterable[str]) -> dict[str, list[Span]]:
    """By trace id: every span that any service recorded in one of these traces."""
    found: dict[str, list[Span]] = {trace: [] for trace in trace_ids}
    for path in folder.glob("*.jsonl"):
        for span in _spans_of(path, *found):
            if span.trace in found:
                found[span.trace].append(span)
    return found


def answers_to(call: Span, name: str) -> bool:
    """Is this the call that its client knows as `name`: x-request-id, the answer's id, our request id, or trace id?"""
    own = call.request
    known = {own, call.trace, call.attributes.get(traces.RESPONSE_ID), *call.attributes.get(traces.CLIENT_ID, ())}
    stem, _, choice = name.rpartition("-")
    return name in known or (stem in known and choice.isdigit())


def _spans_of(path: Path, *wanted: str) -> Iterator[Span]:
    """Spans of the lines that hold one of `wanted`: a line is a batch, and reading it takes much longer than a look."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:  # it has just been renamed or removed
        return
    sought = [text.encode() for text in wanted]
    for line in lines:
        if line.endswith(b"\n") and any(text in line for text in sought):  # without its end it is being written
            try:
                yield from _spans_in_line(line)
            except MALFORMED:  # its writer was killed, or the disk was full
                _mention(path)


def _spans_in_line(line: bytes) -> list[Span]:
    found = []
    for resource in json.loads(line)["resourceSpans"]:
        instance = str(_attributes(resource["resource"]).get("service.instance.id", ""))
        for scope in resource["scopeSpans"]:
            found += [_span(record, instance) for record in scope["spans"]]
    return found


@cache
def _mention(path: Path) -> None:
    """Once for each file: readers look again and again."""
    log.warning("trace_lines_skipped", path=str(path), why="not what a service writes")


def _span(record: dict[str, Any], instance: str) -> Span:
    return Span(
        trace=str(record["traceId"]),
        id=str(record["spanId"]),
        parent=str(record.get("parentSpanId", "")),
        name=str(record["name"]),
        instance=instance,
        start_ns=int(record["startTimeUnixNano"]),
        end_ns=int(record["endTimeUnixNano"]),
        attributes=_attributes(record),
    )


def _attributes(record: dict[str, Any]) -> dict[str, Any]:
    return {one["key"]: _value(one["value"]) for one in record.get("attributes", ())}


def _value(value: dict[str, Any]) -> Any:
    """OTLP-JSON says the type of every value, and writes 64-bit integers as text."""
    ((kind, content),) = value.items()
    if kind == "arrayValue":
        return [_value(one) for one in content.get("values", ())]
    return int(content) if kind == "intValue" else content
