import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from opentelemetry import trace

from shared.telemetry import logs
from shared.telemetry.traces import context_from, within


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_its_origin_level_and_fields():
    stream = io.StringIO()
    logs.start("prefill", "prefill-1", "info", stream)
    structlog.get_logger().info("kv_pulled", blocks=3)
    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {"event": "kv_pulled", "blocks": 3, "level": "info", "role": "prefill", "instance": "prefill-1"}


def test_lines_of_libraries_take_the_same_way():
    stream = io.StringIO()
    logs.start("gateway", "gateway-1", "info", stream)
    logging.getLogger("uvicorn.error").warning("port %d is taken", 80)
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["role"]) == ("port 80 is taken", "uvicorn.error", "gateway")


def test_lines_below_the_level_are_left_out_whoever_writes_them():
    stream = io.StringIO()
    logs.start("gateway", "gateway-1", "warning", stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    assert stream.getvalue() == ""


def test_a_loggers_bound_before_the_start_follows_the_settings():
    early = structlog.get_logger()
    stream = io.StringIO()
    logs.start("gateway", "gateway-1", "info", stream)
    early.info("late")
    assert lines(stream)[0]["role"] == "gateway"


def test_the_bound_request_and_the_current_trace_are_on_the_line():
    stream = io.StringIO()
    logs.start("decode", "decode-1", "info", stream)
    parent = context_from({"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    with structlog.contextvars.bound_contextvars(request_id="r-1"), within(parent):
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")
    inside, outside = lines(stream)
    assert inside["request_id"] == "r-1"
    assert inside["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert inside["span_id"] == "00f067aa0ba902b7"
    assert not {"request_id", "trace_id", "span_id"} & outside.keys()
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_exception_is_one_line_with_its_traceback():
    stream = io.StringIO()
    logs.start("decode", "decode-1", "info", stream)
    try:
        raise ValueError("seven")
    except ValueError:
        structlog.get_logger().exception("step_failed")
    (line,) = lines(stream)
    assert "ValueError: seven" in str(line["exception"])


def test_on_a_terminal_a_line_is_made_to_be_read():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.start("decode", "decode-1", "info", stream)
    structlog.get_logger().info("kv_pulled", blocks=3)
    assert "kv_pulled" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), BrokenPipeError(), ValueError("closed")])
def test_a_log_that_cannot_be_written_stops_nothing(failure: Exception, capsys: pytest.CaptureFixture[str]):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise failure

    logs.start("decode", "decode-1", "info", Broken())
    structlog.get_logger().info("kv_pulled", value=object())
    logging.getLogger("library").error("failed")
    assert capsys.readouterr() == ("", "")
