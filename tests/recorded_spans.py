"""The spans of a test, in memory. Import the fixture into the conftest.py of the room that wants it."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.telemetry import traces


@pytest.fixture
def recorded_spans() -> Iterator[InMemorySpanExporter]:
    """`get_finished_spans()` has what every service of this process has recorded."""
    exporter = InMemorySpanExporter()
    traces.start("test", "test-00000000", SimpleSpanProcessor(exporter))
    yield exporter
    traces.stop()
