"""Logs, traces and metrics: every name of them is in this room, once.

A process calls `start` first and `stop` last. Without `start` (in tests) logs are structlog's own and spans go nowhere.
"""

import sys

from shared.specs.ids import InstanceId, Role
from shared.telemetry import logs, traces
from shared.telemetry.settings import TelemetrySettings
from shared.telemetry.trace_file import TraceFile

__all__ = ["TelemetrySettings", "start", "stop"]


def start(role: Role, instance: InstanceId, settings: TelemetrySettings) -> None:
    """Logs to stderr from now on; spans to the collector, or to a file, or nowhere, as the settings say."""
    logs.start(role, instance, settings.log_level, sys.stderr)
    if settings.export_traces:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # 0.1 s, only where wanted

        traces.start(role, instance, traces.in_background(OTLPSpanExporter()))
    elif settings.trace_folder is not None:
        traces.start(role, instance, traces.in_background(TraceFile(settings.trace_folder, instance)))


def stop() -> None:
    """Give the spans that still wait a few seconds to leave."""
    traces.stop()
