import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared import telemetry
from shared.specs.ids import InstanceId
from shared.telemetry import TelemetrySettings, traces

PREFILL = InstanceId("prefill-00000001")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """What an OTLP collector has received."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield received
        server.shutdown()
        serving.join()


def test_with_an_endpoint_the_spans_reach_the_collector(
    collector: list[ExportTraceServiceRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DISTSERVE_TRACE_DIR", str(tmp_path))
    telemetry.start("prefill", PREFILL, TelemetrySettings.from_env())
    with traces.tracer().start_as_current_span(traces.PREFILL_FORWARD):
        pass
    telemetry.stop()
    (resource,) = collector[0].resource_spans
    assert resource.scope_spans[0].spans[0].name == "prefill.forward"
    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert attributes["service.name"] == "distserve-prefill"
    assert attributes["service.instance.id"] == PREFILL
    assert not list(tmp_path.iterdir())


def test_without_an_endpoint_they_go_to_the_folder(tmp_path: Path):
    telemetry.start("prefill", PREFILL, TelemetrySettings(trace_folder=tmp_path / "traces"))
    with traces.tracer().start_as_current_span(traces.PREFILL_FORWARD):
        pass
    telemetry.stop()
    assert "prefill.forward" in (tmp_path / "traces" / f"{PREFILL}.jsonl").read_text()


def test_logs_go_to_stderr_as_json(capsys: pytest.CaptureFixture[str]):
    telemetry.start("prefill", PREFILL, TelemetrySettings())
    structlog.get_logger().info("ready")
    out, err = capsys.readouterr()
    assert out == ""
    assert '"event": "ready"' in err
