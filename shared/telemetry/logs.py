"""Logs: JSON lines, or readable ones on a terminal. Our own and those of libraries take the same way out."""

import logging
from typing import TextIO

import structlog
from opentelemetry import trace
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.telemetry.settings import LogLevel


class _Output(logging.StreamHandler[TextIO]):
    """A full disk or a closed pipe must not stop a service, and there is nowhere else to complain."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def start(role: str, instance: str, level: LogLevel, stream: TextIO) -> None:
    """Send everything from `level` up to `stream`, with the process's role and instance on every line."""

    def add_origin(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["role"], event["instance"] = role, instance
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_origin,
        _add_trace,
    ]
    if stream.isatty():
        rendering: list[Processor] = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    output = _Output(stream)
    output.setFormatter(
        ProcessorFormatter(
            processors=[ProcessorFormatter.remove_processors_meta, *rendering],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
        )
    )
    logging.basicConfig(handlers=[output], level=level.upper(), force=True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"], event["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return event
