from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.messages.requests import SubmitRequest
from tests.integration.gateway.running_gateway import RunningGateway

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_a_call_is_one_span_in_the_clients_trace_and_the_scheduler_hears_of_it(
    gateway: RunningGateway, recorded_spans: InMemorySpanExporter
) -> None:
    heard: list[trace.SpanContext] = []

    def note_context(work: SubmitRequest) -> None:
        heard.append(trace.get_current_span().get_span_context())

    gateway.backend.refuse = note_context
    body = {"model": "tiny", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 3, "stream": True}
    await gateway.http.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    await gateway.http.get("/health")
    tokenize, root = recorded_spans.get_finished_spans()
    assert (tokenize.name, root.name) == ("gateway.tokenize", "POST /v1/chat/completions")
    assert root.parent is not None
    assert root.context is not None
    assert f"{root.parent.span_id:016x}" == SPAN
    assert f"{root.context.trace_id:032x}" == TRACE
    assert tokenize.parent == root.context
    assert heard[0].span_id == root.context.span_id
    attributes = dict(root.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["http.response.status_code"] == 200
    assert not any("secret" in str(value) for value in attributes.values())
