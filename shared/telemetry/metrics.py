"""Metrics for Prometheus: every name once, with its unit and what it means.

Names that vLLM has are kept, so that dashboards and autoscalers made for it work; the others start with `distserve_`.
No two roles count the same thing, so that a sum over all instances is right. Labels take few values, known here or
bounded by the topology; nothing that a client sends becomes one. The attributes are for the services to set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.kv.ledger import Ledger, State
from shared.messages.instances import Link
from shared.messages.requests import Outcome, RefusalReason
from shared.specs.ids import InstanceId, Role

Verdict = Literal["met", "ttft_missed", "tpot_missed", "both_missed"]
TargetsFrom = Literal["default", "request"]  # whose latency targets: the gateway's own, or those that a client named

# Seconds. Finer below 0.3 s than vLLM's: prefill of a short prompt takes milliseconds
TTFT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
TPOT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
STAGE_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0),
    *(15.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
MOMENT_BUCKETS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
TRANSFER_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TOKENS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

VLLM_FINISHED_REASONS: dict[Outcome, str] = {"stop": "stop", "length": "length", "aborted": "abort", "failed": "error"}


class ServiceMetrics:
    """What every process reports. One per process, in a registry of its own."""

    def __init__(self, role: Role, instance: InstanceId, model: str) -> None:
        disable_created_metrics()  # a second series for every counter and histogram, which nobody draws
        self._registry = CollectorRegistry()
        self._vllm_labels = {"model_name": model, "engine": "0"}
        ProcessCollector(registry=self._registry)
        info = Gauge("distserve_instance_info", "Always 1", ["role", "instance", "model_name"], registry=self._registry)
        info.labels(role, instance, model).set(1)

    def watch_bus(self, troubles: Mapping[str, int]) -> None:
        """Report the counts of a bus connection, which live with it."""
        self._registry.register(_BusTroubles(troubles))

    def render(self) -> tuple[bytes, str]:
        """The text for GET /metrics, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)

    def _vllm_counter(self, name: str, meaning: str) -> Counter:
        return self._counter(f"vllm:{name}", meaning, *self._vllm_labels).labels(**self._vllm_labels)

    def _vllm_gauge(self, name: str, meaning: str) -> Gauge:
        return self._gauge(f"vllm:{name}", meaning, *self._vllm_labels).labels(**self._vllm_labels)

    def _vllm_histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", meaning, self._vllm_labels, registry=self._registry, buckets=buckets)
        return histogram.labels(**self._vllm_labels)


class GatewayMetrics(ServiceMetrics):
    """Requests as their clients see them."""

    def __init__(self, instance: InstanceId, model: str) -> None:
        super().__init__("gateway", instance, model)
        self.in_flight = self._gauge("distserve_http_requests_in_flight", "HTTP requests not answered in full yet")
        self.responses = self._counter(
            "distserve_http_responses_total", "HTTP responses by route template and status", "route", "status"
        )
        self.overhead_seconds = self._histogram(
            "distserve_router_overhead_seconds", "From the request's last byte to its acceptance", MOMENT_BUCKETS
        )
        self.resubmitted = self._counter("distserve_requests_resubmitted_total", "Attempts after the first")
        self.inter_token_seconds = self._vllm_histogram(
            "inter_token_latency_seconds", "Between two writes of tokens to one client", TPOT_BUCKETS
        )
        self._ttft = self._vllm_histogram("time_to_first_token_seconds", "Time to first token", TTFT_BUCKETS)
        self._tpot = self._vllm_histogram(
            "request_time_per_output_token_seconds", "Mean time per output token after the first", TPOT_BUCKETS
        )
        self._total = self._vllm_histogram("e2e_request_latency_seconds", "From request to last token", STAGE_BUCKETS)
        self._prompt_tokens = self._vllm_counter("prompt_tokens_total", "Prompt tokens of ended requests")
        self._output_tokens = self._vllm_counter("generation_tokens_total", "Tokens generated for ended requests")
        self._ended = self._counter(
            "vllm:request_success_total", "Ended requests by reason", *self._vllm_labels, "finished_reason"
        )
        self._goodput = self._counter(
            "distserve_goodput_requests_total", "Ended requests by the latency targets they met", "targets", "slo"
        )
        for reason in VLLM_FINISHED_REASONS.values():  # a series from the start: its first request is a rise too
            self._ended.labels(**self._vllm_labels, finished_reason=reason)
        for verdict, targets_from in product(get_args(Verdict), get_args(TargetsFrom)):
            self._goodput.labels(verdict, targets_from)
        self._target_seconds = self._gauge(
            "distserve_slo_target_seconds", "Latency targets of requests that name none", "latency"
        )

    def request_ended(
        self,
        outcome: Outcome,
        *,
        prompt_tokens: int,
        output_tokens: int,
        ttft_seconds: float | None,
        tpot_seconds: float | None,
        total_seconds: float,
    ) -> None:
        self._ended.labels(**self._vllm_labels, finished_reason=VLLM_FINISHED_REASONS[outcome]).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._output_tokens.inc(output_tokens)
        self._total.observe(total_seconds)
        if ttft_seconds is not None:
            self._ttft.observe(ttft_seconds)
        if tpot_seconds is not None:
            self._tpot.observe(tpot_seconds)

    def targets_judged(self, verdict: Verdict, targets_from: TargetsFrom) -> None:
        """Of a request that has latency targets and was not given up by its client."""
        self._goodput.labels(verdict, targets_from).inc()

    def default_targets(self, ttft_seconds: float | None, tpot_seconds: float | None) -> None:
        for latency, seconds in (("ttft", ttft_seconds), ("tpot", tpot_seconds)):
            if seconds is not None:
                self._target_seconds.labels(latency).set(seconds)


class SchedulerMetrics(ServiceMetrics):
    """What is decided, and from what."""

    def __init__(self, instance: InstanceId, model: str) -> None:
        super().__init__("scheduler", instance, model)
        self.queued = self._gauge("distserve_scheduler_queue_requests", "Accepted requests without a prefill instance")
        self.queue_seconds = self._vllm_histogram(
            "request_queue_time_seconds", "From acceptance to a prefill instance", STAGE_BUCKETS
        )
        self.decision_seconds = self._histogram(
            "distserve_scheduler_decision_seconds", "Time to decide on one event", MOMENT_BUCKETS
        )
        self.dispatched = self._counter("distserve_scheduler_dispatched_total", "Stages started", "role")
        self.interrupted = self._counter("distserve_requests_interrupted_total", "Requests whose holder was lost")
        self.instances = self._gauge("distserve_instances", "Known instances", "role", "state")
        self.plan_epoch = self._gauge("distserve_plan_epoch", "Of the plan that holds; 0: none was made")
        self.leads = self._gauge("distserve_scheduler_leads", "1: this scheduler leads, 0: it stands by")
        self._refused = self._counter("distserve_scheduler_refused_total", "Requests refused", "reason")

    def refused(self, reason: RefusalReason) -> None:
        self._refused.labels(reason).inc()


class WorkerMetrics(ServiceMetrics):
    """What an instance with an engine reports, whichever phase it runs."""

    def __init__(self, role: Role, instance: InstanceId, model: str) -> None:
        super().__init__(role, instance, model)
        self.step_seconds = self._histogram("distserve_step_seconds", "One engine step", TPOT_BUCKETS)
        self.step_tokens = self._histogram("distserve_step_tokens", "Tokens computed in one step", TOKENS_BUCKETS)
        self.steps_failed = self._counter("distserve_step_failures_total", "Engine steps that failed")
        self._running = self._vllm_gauge("num_requests_running", "Requests in the current step")
        self._waiting = self._vllm_gauge("num_requests_waiting", "Requests waiting for their turn here")
        self._kv_usage = self._vllm_gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1")
        self._stranded = self._gauge("distserve_kv_stranded_blocks", "KV blocks neither free nor owned: 0, or a defect")

    def watch(self, ledger: Ledger, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Look these up whenever metrics are asked for."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        self._kv_usage.set_function(lambda: 1 - ledger.free / ledger.blocks)
        self._stranded.set_function(ledger.stranded)
        self._registry.register(_KvBlocks(ledger))

    def step_ended(self, seconds: float, tokens: int) -> None:
        self.step_seconds.observe(seconds)
        self.step_tokens.observe(tokens)


class PrefillMetrics(WorkerMetrics):
    def __init__(self, instance: InstanceId, model: str) -> None:
        super().__init__("prefill", instance, model)
        self.queue_seconds = self._histogram("distserve_prefill_queue_seconds", "Wait for a batch", STAGE_BUCKETS)
        self.prefill_seconds = self._vllm_histogram("request_prefill_time_seconds", "Prompt computed", STAGE_BUCKETS)
        self.held_seconds = self._histogram(
            "distserve_kv_held_seconds", "From computed to released by the decode side", STAGE_BUCKETS
        )
        self.leases_expired = self._counter("distserve_kv_lease_expired_total", "KV that nobody came for in time")


class DecodeMetrics(WorkerMetrics):
    def __init__(self, instance: InstanceId, model: str) -> None:
        super().__init__("decode", instance, model)
        self.queue_seconds = self._histogram("distserve_decode_queue_seconds", "Wait for KV blocks", STAGE_BUCKETS)
        self.decode_seconds = self._vllm_histogram(
            "request_decode_time_seconds", "From the KV's arrival to the last token", STAGE_BUCKETS
        )
        self.preempted = self._vllm_counter("num_preemptions_total", "Requests sent back for want of KV blocks")
        self.pull_seconds = self._histogram(
            "distserve_kv_pull_seconds",
            "KV from its blocks' reservation to its arrival, waiting included",
            STAGE_BUCKETS,
        )
        self.transfers_failed = self._counter("distserve_kv_transfer_failures_total", "KV transfers that failed")
        self._transfer_seconds = self._histogram(
            "distserve_kv_transfer_seconds", "One KV transfer, first to last byte", TRANSFER_BUCKETS, "transport"
        )
        self._transfer_bytes = self._counter("distserve_kv_transfer_bytes_total", "KV bytes received", "transport")

    def kv_received(self, transport: str, size: int, seconds: float) -> None:
        """`seconds`: from the first byte to the last."""
        self._transfer_seconds.labels(transport).observe(seconds)
        self._transfer_bytes.labels(transport).inc(size)

    def watch_links(self, links: Callable[[], Sequence[Link]]) -> None:
        """Look these up whenever metrics are asked for."""
        self._registry.register(_KvLinks(links))


class _KvBlocks(Collector):
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("distserve_kv_blocks", "KV blocks by state", labels=["state"])
        family.add_metric(["free"], self._ledger.free)
        for state in State:
            family.add_metric([state], self._ledger.count(state))
        yield family


class _KvLinks(Collector):
    """What the self-tests found. Only links that are there: a lost peer takes its series with it."""

    def __init__(self, links: Callable[[], Sequence[Link]]) -> None:
        self._links = links

    def collect(self) -> Iterator[Metric]:
        labels = ["peer", "transport"]
        health = GaugeMetricFamily(
            "distserve_kv_link_healthy", "1 if a KV link works, over the transport that it should use", labels=labels
        )
        speed = GaugeMetricFamily(
            "distserve_kv_link_bytes_per_second", "Speed of a KV link in its self-test", labels=labels
        )
        for link in self._links():
            health.add_metric([link.peer, link.transport], link.ok and not link.detail)
            speed.add_metric([link.peer, link.transport], 1e9 * link.gigabytes_per_second)
        yield from (health, speed)


class _BusTroubles(Collector):
    def __init__(self, troubles: Mapping[str, int]) -> None:
        self._troubles = troubles

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("distserve_bus_troubles", "What went wrong on the bus", labels=["kind"])
        for kind, count in self._troubles.items():
            family.add_metric([kind], count)
        yield family
