"""Every metric of the scheduler and of the instances is there, and moves when what it means happens."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from shared.messages.handoff import KvReleased, PullBlocks
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import ServiceMetrics
from shared.transport.loopback import LoopbackTransport
from tests.cluster import MODEL, Cluster
from tests.integration.serving.test_faults import FailingOnce

PROMPT = list(range(10, 40))
LONG = Sampling(max_tokens=40, temperature=0.0)

# Moved by faults and by what is outside of these services: the tests below, and those of the rooms, see to them
MOVED_BY_FAULTS = {
    "distserve_bus_troubles",
    "distserve_kv_lease_expired",
    "distserve_kv_stranded_blocks",
    "distserve_kv_transfer_failures",
    "distserve_requests_interrupted",
    "distserve_scheduler_queue_requests",
    "distserve_scheduler_refused",
    "distserve_step_failures",
    "vllm:num_preemptions",
    "vllm:num_requests_waiting",
}


def moved(metrics: ServiceMetrics) -> dict[str, bool]:
    """By family: is any of its series not zero?"""
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {family.name: any(sample.value for sample in family.samples) for family in families}


def value(metrics: ServiceMetrics, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(metrics.render()[0].decode())
    samples = [one for family in families for one in family.samples if one.name == name]
    return sum(one.value for one in samples if labels.items() <= one.labels.items())


def of(cluster: Cluster, role: str) -> ServiceMetrics:
    return next(member.metrics for instance, member in cluster.members.items() if instance.startswith(role))


async def test_one_request_moves_every_metric_but_those_of_faults(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await answer.has(3)
        during = moved(of(cluster, "decode"))
        await answer.has(40)
        await cluster.until(cluster.idle)
        await cluster.until(lambda: value(cluster.scheduler_metrics, "distserve_instances") >= 2)
        after = [moved(of(cluster, "prefill")), moved(of(cluster, "decode")), moved(cluster.scheduler_metrics)]
    assert during["vllm:num_requests_running"]
    assert during["vllm:kv_cache_usage_perc"]
    at_rest = {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "distserve_plan_epoch"}
    for families in after:
        still = {name for name, is_moved in families.items() if not is_moved}
        assert still <= MOVED_BY_FAULTS | at_rest


async def test_blocks_are_counted_by_state_and_add_up(connect, make_transport, model: Path, hub):
    pulls = []

    def hold_back_pulls(subject: str, message: object) -> tuple[float, ...]:
        if isinstance(message, PullBlocks) and not pulls:
            pulls.append(message)
            return ()
        return (0.0,)

    hub.deliveries = hold_back_pulls
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await cluster.until(lambda: bool(pulls))
        prefill, decode = of(cluster, "prefill"), of(cluster, "decode")
        assert value(prefill, "distserve_kv_blocks", state="held") == 8
        assert value(decode, "distserve_kv_blocks", state="filling") == 8
        assert value(decode, "vllm:num_requests_waiting") == 1
        assert value(prefill, "distserve_kv_blocks") == value(decode, "distserve_kv_blocks") == 64
        await answer.has(40)
        await cluster.until(cluster.idle)
        assert value(prefill, "distserve_kv_blocks", state="free") == 64


async def test_transfers_are_counted_by_what_carried_them(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model) as cluster:
        await cluster.gateway.generate(PROMPT, LONG, MODEL)
        await cluster.until(cluster.idle)
        decode, (source,) = of(cluster, "decode"), cluster.of("prefill")
        assert value(decode, "distserve_kv_transfer_bytes_total", transport="loopback") > 1000
        assert value(decode, "distserve_kv_transfer_seconds_count", transport="loopback") == 1
        assert value(decode, "distserve_kv_link_healthy", peer=source) == 1
        assert value(decode, "distserve_kv_link_bytes_per_second", peer=source) > 1e6


async def test_a_request_that_runs_out_of_blocks_counts_as_preempted(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model, blocks=20) as cluster:
        answers = [await cluster.gateway.submit([*PROMPT, n], LONG, MODEL) for n in range(2)]
        await asyncio.gather(*(answer.has(40) for answer in answers))
        await cluster.until(cluster.idle)
        assert value(of(cluster, "decode"), "vllm:num_preemptions_total") >= 1


async def test_a_failed_step_is_counted(connect, make_transport, model: Path):
    engine_of: Callable = lambda engine: FailingOnce(engine, fail_at=3)  # noqa: E731
    async with Cluster(connect, make_transport, model, engine_of=engine_of) as cluster:
        await cluster.gateway.generate(PROMPT, LONG, MODEL)
        assert value(of(cluster, "decode"), "distserve_step_failures_total") == 1


async def test_a_lease_that_ended_is_counted(connect, make_transport, model: Path, hub):
    hub.deliveries = lambda subject, message: () if isinstance(message, KvReleased) else (0.0,)
    settings = {"DISTSERVE_LEASE_SECONDS": "2", "DISTSERVE_TRANSFER_TIMEOUT": "1"}
    async with Cluster(connect, make_transport, model, settings=settings) as cluster:
        await cluster.gateway.generate(PROMPT, LONG, MODEL)
        await cluster.until(cluster.idle)
        assert value(of(cluster, "prefill"), "distserve_kv_lease_expired_total") == 1


async def test_requests_of_a_lost_instance_count_as_interrupted(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model, decode=2) as cluster:
        answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
        await answer.has(3)
        await cluster.kill(next(i for i in cluster.of("decode") if cluster.members[i].service.works()))
        await answer.has(40)
        assert value(cluster.scheduler_metrics, "distserve_requests_interrupted_total") == 1


async def test_a_transfer_that_fails_is_counted(connect, make_transport, model: Path, monkeypatch):
    async with Cluster(connect, make_transport, model) as cluster:
        sends = []

        async def stuck(*_: object, **__: object) -> None:
            sends.append(1)
            await asyncio.sleep(30)

        (source,) = cluster.of("prefill")
        transport = cluster.members[source].transport
        assert isinstance(transport, LoopbackTransport)
        with monkeypatch.context() as patched:
            patched.setattr(transport, "send", stuck)
            answer = await cluster.gateway.submit(PROMPT, LONG, MODEL)
            await cluster.until(lambda: bool(sends))
            decode = of(cluster, "decode")
            await cluster.until(lambda: value(decode, "distserve_kv_transfer_failures_total") >= 1)
        await answer.has(40)


async def test_blocks_that_nobody_owns_are_reported_at_once(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model) as cluster:
        (name,) = cluster.of("decode")
        ledger, metrics = cluster.members[name].ledger, cluster.members[name].metrics
        assert value(metrics, "distserve_kv_stranded_blocks") == 0
        taken = ledger._free.take(3)  # as if some code had lost them
        assert value(metrics, "distserve_kv_stranded_blocks") == 3
        ledger._free.give(taken)
