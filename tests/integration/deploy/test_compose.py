"""The compose files together, as Compose itself reads them. No engine is asked."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.docker_engine import ROOT, ComposeStack, needs_compose

OBSERVABILITY = ROOT / "deploy" / "observability"
ROLES = ("gateway", "scheduler", "prefill", "decode")

Services = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def plain() -> Services:
    needs_compose()
    return ComposeStack("plain").config("docker-compose.yml")["services"]


@pytest.fixture(scope="module")
def watched() -> Services:
    needs_compose()
    return ComposeStack("watched").config("docker-compose.yml", "docker-compose.observability.yml")["services"]


def test_without_a_collector_every_service_writes_its_traces_where_the_gateway_and_the_command_line_read(
    plain: Services,
):
    for name in (*ROLES, "cli"):
        assert plain[name]["environment"]["DISTSERVE_TRACE_DIR"] == "/traces"
        assert "/traces" in mounts(plain[name])


def test_to_be_watched_a_service_needs_nothing_else_and_loses_nothing(plain: Services, watched: Services):
    added = {
        "DISTSERVE_METRICS_HOST": "0.0.0.0",
        "DISTSERVE_METRICS_PORT": "9100",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://otel-collector:4318",
    }
    for role in ROLES:
        assert watched[role]["environment"] == plain[role]["environment"] | added
        assert mounts(watched[role]) == mounts(plain[role])
        assert watched[role].keys() == plain[role].keys()
    assert watched.keys() - plain.keys() == {"otel-collector", "jaeger", "prometheus", "grafana"}


def test_prometheus_looks_for_every_service_where_it_has_its_metrics(watched: Services):
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    looked_for = [one for job in config["scrape_configs"] for one in job["dns_sd_configs"]]
    assert [job["job_name"] for job in config["scrape_configs"]] == list(ROLES)
    assert [one["names"] for one in looked_for] == [[role] for role in ROLES]
    assert {str(one["port"]) for one in looked_for} == {"9100"}
    for name in ("prometheus", "otel-collector"):
        for role in ROLES:
            assert watched[name]["networks"].keys() & watched[role]["networks"].keys(), (name, role)


def test_what_is_mounted_from_the_checkout_is_there(watched: Services):
    for service in watched.values():
        for source in mounts(service).values():
            assert not source.startswith("/") or (ROOT / source).exists(), source


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """By folder in the container: the volume's name, or the path outside. docker-compose 1.29 writes them as text."""
    found = {}
    for one in service.get("volumes", ()):
        source, target = one.split(":")[:2] if isinstance(one, str) else (one["source"], one["target"])
        found[target] = source
    return found
