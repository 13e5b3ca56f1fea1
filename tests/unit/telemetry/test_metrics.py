from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from shared.specs.ids import InstanceId
from shared.telemetry.metrics import DecodeMetrics, GatewayMetrics, PrefillMetrics, SchedulerMetrics, ServiceMetrics

ROLES = (GatewayMetrics, SchedulerMetrics, PrefillMetrics, DecodeMetrics)


def samples(metrics: ServiceMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def test_every_metric_is_ours_or_vllms_or_the_processs_and_says_what_it_means():
    for make in ROLES:
        text = make(InstanceId("x-1"), "tiny").render()[0].decode()
        for family in text_string_to_metric_families(text):
            assert family.name.startswith(("distserve_", "vllm:", "process_"))
            assert family.documentation


def test_an_ended_request_counts_in_every_metric_of_its_life():
    metrics = GatewayMetrics(InstanceId("gateway-1"), "tiny")
    metrics.request_ended(
        "aborted", prompt_tokens=7, output_tokens=3, ttft_seconds=0.2, tpot_seconds=0.05, total_seconds=0.3
    )
    vllm = {"model_name": "tiny", "engine": "0"}
    assert value(metrics, "vllm:request_success_total", **vllm, finished_reason="abort") == 1
    assert value(metrics, "vllm:prompt_tokens_total", **vllm) == 7
    assert value(metrics, "vllm:generation_tokens_total", **vllm) == 3
    assert value(metrics, "vllm:time_to_first_token_seconds_sum", **vllm) == 0.2
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum", **vllm) == 0.05
    assert value(metrics, "vllm:e2e_request_latency_seconds_count", **vllm) == 1


def test_a_request_without_a_token_has_no_latencies():
    metrics = GatewayMetrics(InstanceId("gateway-1"), "tiny")
    metrics.request_ended(
        "failed", prompt_tokens=7, output_tokens=0, ttft_seconds=None, tpot_seconds=None, total_seconds=0.3
    )
    assert value(metrics, "vllm:time_to_first_token_seconds_count", model_name="tiny", engine="0") == 0


def test_troubles_of_the_bus_are_read_when_asked_for():
    metrics, troubles = SchedulerMetrics(InstanceId("scheduler-1"), "tiny"), {"bus_slow_consumer": 1}
    metrics.watch_bus(troubles)
    troubles["bus_slow_consumer"] = 5
    assert value(metrics, "distserve_bus_troubles_total", kind="bus_slow_consumer") == 5


def test_two_instances_in_one_process_do_not_mix():
    one, two = (PrefillMetrics(InstanceId(name), "tiny") for name in ("prefill-1", "prefill-2"))
    one.leases_expired.inc()
    assert value(two, "distserve_kv_lease_expired_total") == 0


def test_first_token_latencies_below_a_third_of_a_second_can_be_told_apart():
    metrics = GatewayMetrics(InstanceId("gateway-1"), "tiny")
    bounds = {
        float(dict(labels)["le"])
        for name, labels in samples(metrics)
        if name == "vllm:time_to_first_token_seconds_bucket"
    }
    assert len([bound for bound in bounds if bound < 0.3]) >= 12


def test_a_slow_kv_transfer_can_be_told_from_one_that_nearly_missed_its_deadline():
    metrics = DecodeMetrics(InstanceId("decode-1"), "tiny")
    for seconds in (0.0008, 0.03, 0.09, 0.4, 3.0, 9.0):
        metrics.kv_received("cma", 1, seconds)
    name = "distserve_kv_transfer_seconds_bucket"
    found = samples(metrics)
    bounds = sorted((dict(labels)["le"] for key, labels in found if key == name), key=float)
    counts = [value(metrics, name, transport="cma", le=bound) for bound in bounds]
    assert {after - before for before, after in pairwise([0.0, *counts])} == {0, 1}, "no two fall together"
    assert counts[-2] == 6, "the deadline, 10 s, is the last bound"
