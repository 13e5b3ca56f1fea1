"""What the root span of a call says about it, in OpenTelemetry's words for generative AI. Never any text."""

from typing import Literal

from opentelemetry import trace

from services.gateway.answer import Answer
from services.gateway.openai import Options
from services.gateway.targets import LatencyTargets
from shared.telemetry import traces

Operation = Literal["chat", "text_completion"]


def describe_request(operation: Operation, options: Options, targets: LatencyTargets, call: str, response: str) -> None:
    """`call` begins the ids of its requests; `response` is the answer's id."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    attributes = {
        traces.OPERATION: operation,
        traces.PROVIDER: "distserve",
        traces.REQUEST_ID: call,
        traces.RESPONSE_ID: response,
        traces.REQUEST_MODEL: options.model,
        traces.REQUEST_TEMPERATURE: options.temperature,
        traces.REQUEST_TOP_P: options.top_p,
        traces.REQUEST_STREAM: options.stream,
    }
    if targets.ttft_seconds is not None:
        attributes[traces.TTFT_TARGET] = targets.ttft_seconds
    if targets.tpot_seconds is not None:
        attributes[traces.TPOT_TARGET] = targets.tpot_seconds
    if options.max_tokens is not None:
        attributes[traces.REQUEST_MAX_TOKENS] = options.max_tokens
    if options.seed is not None:
        attributes[traces.REQUEST_SEED] = options.seed
    span.set_attributes(attributes)


def describe_answer(answer: Answer, arrived_at: float) -> None:
    """`arrived_at`: of the request's last byte, on the monotonic clock."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    usage = answer.usage()
    span.set_attribute(traces.INPUT_TOKENS, usage.prompt_tokens)
    span.set_attribute(traces.OUTPUT_TOKENS, usage.completion_tokens)
    span.set_attribute(traces.RESPONSE_FINISH_REASONS, [choice.finish or "error" for choice in answer.choices])
    first_tokens = [choice.live.life.first_token_at for choice in answer.choices]
    begun = [moment for moment in first_tokens if moment is not None]
    if begun:
        span.set_attribute(traces.TIME_TO_FIRST_CHUNK, min(begun) - arrived_at)
