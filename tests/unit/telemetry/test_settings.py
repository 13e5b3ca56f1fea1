from pathlib import Path

import pytest

from shared.specs.settings import BadSetting
from shared.telemetry import TelemetrySettings


def test_without_variables_traces_go_nowhere():
    settings = TelemetrySettings.from_env({})
    assert settings == TelemetrySettings(log_level="info", export_traces=False, trace_folder=None)


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_of_opentelemetrys_own_turns_the_export_on(name: str):
    assert TelemetrySettings.from_env({name: "http://collector:4318"}).export_traces
    assert not TelemetrySettings.from_env({name: ""}).export_traces


def test_a_folder_for_traces_is_taken_as_it_is():
    assert TelemetrySettings.from_env({"DISTSERVE_TRACE_DIR": "/var/traces"}).trace_folder == Path("/var/traces")


def test_an_unknown_log_level_is_refused_by_name():
    with pytest.raises(BadSetting, match="DISTSERVE_LOG_LEVEL='loud'"):
        TelemetrySettings.from_env({"DISTSERVE_LOG_LEVEL": "loud"})
