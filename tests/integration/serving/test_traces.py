"""One trace spans the whole way of a request behind the gateway."""

from pathlib import Path

from shared.specs.sampling import Sampling
from shared.telemetry import traces
from tests.cluster import MODEL, Cluster


async def test_every_stage_is_a_span_of_the_request_s_trace(connect, make_transport, model: Path, recorded_spans):
    async with Cluster(connect, make_transport, model) as cluster:
        with traces.tracer().start_as_current_span("the gateway's span") as root:
            await cluster.gateway.generate([7, 8, 9], Sampling(max_tokens=5, temperature=0.0), MODEL)
        await cluster.until(cluster.idle)
    spans = {span.name: span for span in recorded_spans.get_finished_spans()}
    stages = [
        traces.SCHEDULER_QUEUE,
        traces.PREFILL_QUEUE,
        traces.PREFILL_FORWARD,
        traces.DECODE_QUEUE,
        traces.KV_TRANSFER,
        traces.DECODE_GENERATE,
    ]
    assert set(stages) <= set(spans)
    assert {spans[name].context.trace_id for name in stages} == {root.get_span_context().trace_id}
    starts = [spans[name].start_time for name in stages]
    assert starts == sorted(starts)
    assert spans[traces.KV_TRANSFER].attributes[traces.KV_BYTES] > 0
