"""Every metric and label that is drawn or alarmed on is one that the services export."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from shared.kv.ledger import Ledger
from shared.messages.instances import Link
from shared.specs.ids import InstanceId
from shared.telemetry.metrics import DecodeMetrics, GatewayMetrics, PrefillMetrics, SchedulerMetrics

ROOT = Path(__file__).resolve().parents[3]
OBSERVABILITY = ROOT / "deploy" / "observability"
DASHBOARDS = sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json"))
FROM_PROMETHEUS = {"job", "instance"}  # labels that every series gets when it is scraped
METRIC = re.compile(r"\b((?:distserve_|vllm:|process_)\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Sample name -> names of its labels, of all roles."""
    found: dict[str, set[str]] = {}
    instance = InstanceId("x-1")
    gateway = GatewayMetrics(instance, "tiny")
    gateway.watch_bus({"bus_slow_consumer": 1})
    decode = DecodeMetrics(instance, "tiny")
    decode.watch(Ledger(4), running=int, waiting=int)
    decode.watch_links(lambda: [Link(peer=instance, ok=True, transport="cma")])
    for metrics in (gateway, SchedulerMetrics(instance, "tiny"), PrefillMetrics(instance, "tiny"), decode):
        registry = metrics._registry
        for collector in registry._collector_to_names:
            declared = set(collector._labelnames) if isinstance(collector, MetricWrapperBase) else set()
            for name in registry._get_names(collector):  # of those without a series too
                found[name] = declared | ({"le"} if name.endswith("_bucket") else set())
            for family in collector.collect():
                for sample in family.samples:
                    found[sample.name] = declared | sample.labels.keys()
    return found


def expressions(dashboard: Path) -> Iterator[tuple[str, str]]:
    """What is drawn, and how it is called in the legend."""
    for panel in json.loads(dashboard.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]


def unknown_in(expression: str, exported: dict[str, set[str]]) -> list[str]:
    metrics = METRIC.findall(expression)
    assert metrics or "up{" in expression, expression
    unknown = [name for name, _ in metrics if name not in exported]
    labels = set().union(*(exported.get(name, set()) for name, _ in metrics)) | FROM_PROMETHEUS
    for name, selector in metrics:
        asked = re.findall(r"(\w+)\s*[=!]", selector)
        unknown += [f"{name}: {one}" for one in asked if one not in exported.get(name, set()) | FROM_PROMETHEUS]
    grouped = [one.strip() for names in GROUPING.findall(expression) for one in names.split(",")]
    return unknown + [one for one in grouped if one not in labels]


def test_there_is_a_dashboard_for_each_of_the_five_views():
    titles = [json.loads(path.read_text())["title"] for path in DASHBOARDS]
    assert titles == ["Control plane", "SLO and goodput", "Instances", "KV transfer", "Prefill against decode"]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_what_a_dashboard_draws_is_exported(dashboard: Path, exported: dict[str, set[str]]):
    for expression, legend in expressions(dashboard):
        assert unknown_in(expression, exported) == []
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        kept = {one.strip() for names in GROUPING.findall(expression) for one in names.split(",")}
        names = [name for name, _ in METRIC.findall(expression)]
        assert shown <= (kept or exported[names[0]] | FROM_PROMETHEUS), f"{legend} of {expression}"


def test_what_is_alarmed_on_is_exported(exported: dict[str, set[str]]):
    text = (OBSERVABILITY / "rules.yml").read_text()
    rules = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*))", text)
    assert len(rules) == text.count("alert:")
    for block, line in rules:
        assert unknown_in(block or line, exported) == []


def test_a_name_or_a_label_that_nobody_exports_is_found(exported: dict[str, set[str]]):
    assert unknown_in("sum(rate(distserve_nothing_total[5m]))", exported) == ["distserve_nothing_total"]
    assert unknown_in('distserve_kv_blocks{colour="red"}', exported) == ["distserve_kv_blocks: colour"]
    assert unknown_in("sum by (colour) (distserve_kv_blocks)", exported) == ["colour"]


def test_every_metric_that_is_ours_is_drawn_somewhere(exported: dict[str, set[str]]):
    drawn = " ".join(expression for path in DASHBOARDS for expression, _ in expressions(path))
    stems = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in exported}
    ours = {stem for stem in stems if stem.startswith(("distserve_", "vllm:"))}
    assert {stem for stem in ours if stem not in drawn} == set()
