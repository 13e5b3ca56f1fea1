from pathlib import Path

import pytest

from services.gateway.config import GatewayConfig
from shared.specs.settings import BadSetting


def test_the_model_is_all_that_must_be_said() -> None:
    config = GatewayConfig.from_env({"DISTSERVE_MODEL": "/models/tiny/"})
    assert (config.served_model, config.port, config.api_keys) == ("tiny", 8000, ())


def test_api_keys_are_separated_by_commas() -> None:
    config = GatewayConfig.from_env({"DISTSERVE_MODEL": "m", "DISTSERVE_API_KEYS": "one, two"})
    assert config.api_keys == ("one", "two")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISTSERVE_MODEL", ""),
        ("DISTSERVE_PORT", "http"),
        ("DISTSERVE_PORT", "70000"),
        ("DISTSERVE_API_KEYS", ","),
        ("DISTSERVE_API_KEYS", "with space"),
        ("DISTSERVE_API_KEYS", "sha256:1234"),
        ("DISTSERVE_API_KEYS", "sha256:nothex"),
        ("DISTSERVE_API_KEYS_FILE", "/nowhere"),
        ("DISTSERVE_REQUEST_TIMEOUT", "0"),
        ("NATS_URL", "http://x"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(BadSetting, match=name):
        GatewayConfig.from_env({"DISTSERVE_MODEL": "m", name: value})


def test_api_keys_come_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may\nsha256:{'0' * 64}  somebody\n\nplain\n")
    config = GatewayConfig.from_env({"DISTSERVE_MODEL": "m", "DISTSERVE_API_KEYS_FILE": str(file)})
    assert config.api_keys == (f"sha256:{'0' * 64}", "plain")


def test_traces_that_go_to_a_collector_are_not_looked_for_in_the_folder() -> None:
    variables = {"DISTSERVE_MODEL": "m", "DISTSERVE_TRACE_DIR": "/traces"}
    assert GatewayConfig.from_env(variables).trace_folder == Path("/traces")
    sent = GatewayConfig.from_env(variables | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert (sent.trace_folder, sent.traces_exported) == (None, True)
