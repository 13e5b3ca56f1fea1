"""What is logged, and where traces go."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from shared.specs.settings import Environment

LogLevel = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    log_level: LogLevel = "info"
    export_traces: bool = False  # over OTLP/HTTP; endpoint, headers and the like are read by the exporter itself
    trace_folder: Path | None = None  # used if they are not exported; without either, nothing is recorded
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no port for metrics and health; 0: any free one, which is logged

    @classmethod
    def from_env(cls, variables: Mapping[str, str] = os.environ) -> Self:
        """From DISTSERVE_LOG_LEVEL, _TRACE_DIR, _METRICS_HOST, _METRICS_PORT; OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT."""
        env = Environment(variables)
        folder = env.text("TRACE_DIR", "")
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        return cls(
            log_level=env.choice("LOG_LEVEL", "info", LEVELS),
            export_traces=any(variables.get(name) for name in endpoints),
            trace_folder=Path(folder) if folder else None,
            metrics_host=env.text("METRICS_HOST", "127.0.0.1"),
            metrics_port=env.integer("METRICS_PORT", 0, most=65535) if env.text("METRICS_PORT", "") else None,
        )
