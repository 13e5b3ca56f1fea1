"""Traces without a collector: OTLP-JSON lines in a local file, the format that collectors read back."""

import base64
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

FILE_BYTES = 16 << 20  # of the current file and of the one before it
KEPT_FILES = 32  # in the folder, the files of earlier processes included


class TraceFile(SpanExporter):
    """Appends to `<instance>.jsonl`; when that is full it becomes `<instance>.old.jsonl`.

    Loses spans rather than raise.
    """

    def __init__(self, folder: Path, instance: str, file_bytes: int = FILE_BYTES) -> None:
        self._path = folder / f"{instance}.jsonl"
        self._old_path = folder / f"{instance}.old.jsonl"
        self._file_bytes = file_bytes
        self._failed = False
        self._writing = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        line = _otlp_json(spans)
        try:
            with self._writing:
                self._make_room(len(line))
                _append(self._path, line)
        except OSError as error:
            if not self._failed:
                structlog.get_logger().warning("traces_not_written", path=str(self._path), error=str(error))
            self._failed = True
            return SpanExportResult.FAILURE
        self._failed = False
        return SpanExportResult.SUCCESS

    def _make_room(self, size: int) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process, starting too, was quicker
                _remove_oldest(self._path.parent, keep=KEPT_FILES - 2)
        elif self._path.stat().st_size + size > self._file_bytes:
            self._path.replace(self._old_path)


def _append(path: Path, line: bytes) -> None:
    """All of it or nothing: a full disk takes a part, which would spoil the next line too."""
    with path.open("ab", buffering=0) as file:
        start, left = file.seek(0, os.SEEK_END), memoryview(line)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            raise


def _remove_oldest(folder: Path, keep: int) -> None:
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) - keep)]:
        path.unlink(missing_ok=True)


def _otlp_json(spans: Sequence[ReadableSpan]) -> bytes:
    """One line. Unlike protobuf's own JSON, OTLP's has ids in hex."""
    message = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in message.get("resourceSpans", ()):
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                _hex_ids(span)
                for link in span.get("links", ()):
                    _hex_ids(link)
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _hex_ids(record: dict[str, Any]) -> None:
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in record:
            record[key] = base64.b64decode(record[key]).hex()
