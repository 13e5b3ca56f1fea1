"""What the services' READMEs list can be set in containers too."""

import re

import pytest
import yaml

from tests.docker_engine import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OTHERWISE = {
    "DISTSERVE_HOST": "the image says so",
    "DISTSERVE_PORT": "always 8000 inside; DISTSERVE_PUBLISH says where it is outside",
    "DISTSERVE_JOURNAL_DIR": "the image says so",
    "DISTSERVE_METRICS_HOST": "docker-compose.observability.yml",
    "DISTSERVE_METRICS_PORT": "docker-compose.observability.yml",
    "DISTSERVE_DEVICE": "docker-compose.gpu.yml",
    "DISTSERVE_GPU_CLAIM_DIR": "docker-compose.gpu.yml",
    "DISTSERVE_CORES": "all instances of a role would get the same ones",
}


@pytest.mark.parametrize("role", ["gateway", "scheduler", "prefill", "decode"])
def test_every_setting_of_a_service_passes_through_compose(role: str) -> None:
    rows = re.findall(r"^\| (`DISTSERVE_.*?) \|", (ROOT / "services" / role / "README.md").read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(DISTSERVE_\w+)`", row)}
    assert len(listed) > 10
    assert listed - OTHERWISE.keys() <= COMPOSE[role]["environment"].keys()


@pytest.mark.parametrize("role", ["gateway", "scheduler", "prefill", "decode"])
def test_a_setting_comes_from_the_variable_of_its_own_name(role: str) -> None:
    for name, value in COMPOSE[role]["environment"].items():
        assert not str(value).startswith("$") or re.match(rf"\$\{{{name}[:-]", str(value)), name
