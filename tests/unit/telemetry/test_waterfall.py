from typing import Any

import pytest

from shared.telemetry import traces
from shared.telemetry.trace_reader import Span, answers_to
from shared.telemetry.waterfall import Stage, Waterfall, budgets, waterfalls

CALL = "mine.0a1b2c3d"
MS = 1_000_000


def span(name: str, start_ms: float, end_ms: float, parent: str = traces.CHAT_COMPLETIONS, **about: Any) -> Span:
    return Span(
        trace="t" * 32,
        id=name,
        parent=parent,
        name=name,
        instance=name.partition(".")[0] + "-1",
        start_ns=int(start_ms * MS),
        end_ns=int(end_ms * MS),
        attributes=about,
    )


def call(end_ms: float, ttft_seconds: float | None = None) -> Span:
    about: dict[str, Any] = {
        traces.REQUEST_ID: CALL,
        traces.RESPONSE_ID: f"chatcmpl-{CALL}",
        traces.CLIENT_ID: ["mine"],
        traces.HTTP_STATUS: 200,
        traces.RESPONSE_FINISH_REASONS: ["length"],
        traces.INPUT_TOKENS: 7,
    }
    if ttft_seconds is not None:
        about[traces.TIME_TO_FIRST_CHUNK] = ttft_seconds
    return span(traces.CHAT_COMPLETIONS, 0, end_ms, parent="", **about)


def of(attempt: int = 0, choice: int = 0, **more: Any) -> dict[str, Any]:
    return {traces.REQUEST_ID: f"{CALL}-{choice}", traces.ATTEMPT: attempt, **more}


KV = {traces.KV_BYTES: 8_000_000, traces.KV_BLOCKS: 4, traces.KV_TRANSPORT: "cma", traces.KV_MOVE_SECONDS: 0.002}
SPANS = [
    span(traces.DECODE_GENERATE, 42, 92, **of(**{traces.OUTPUT_TOKENS: 6})),
    span(traces.GATEWAY_TOKENIZE, 1, 2),
    span(traces.SCHEDULER_QUEUE, 4, 5, **of()),
    span(traces.PREFILL_QUEUE, 6, 10, **of()),
    span(traces.PREFILL_FORWARD, 10, 30, **of()),
    span(traces.DECODE_QUEUE, 33, 34, **of()),
    span(traces.KV_TRANSFER, 34, 42, **of(**KV)),
]


def one(root: Span, spans: list[Span]) -> Waterfall:
    (found,) = waterfalls(root, spans)
    return found


def ms_of(stages: tuple[Stage, ...]) -> list[tuple[str, float]]:
    return [(stage.name, round(1e3 * stage.seconds, 6)) for stage in stages]


def test_stages_come_in_their_order_with_the_hops_between_them_named():
    assert ms_of(one(call(95, 0.031), SPANS).stages) == [
        ("HTTP in", 1),
        ("tokenize", 1),
        ("bus to scheduler", 2),
        ("scheduler queue", 1),
        ("bus to prefill", 1),
        ("prefill queue", 4),
        ("prefill", 20),
        ("bus to decode", 3),
        ("decode queue", 1),
        ("KV transfer", 8),
        ("decode", 50),
        ("HTTP out", 3),
    ]


def test_every_moment_of_a_request_counts_once_even_where_spans_overlap():
    overlapping = [*SPANS[:-1], span(traces.KV_TRANSFER, 33.5, 50, **of(**KV))]
    found = one(call(95, 0.031), overlapping)
    assert sum(stage.seconds for stage in found.stages) == pytest.approx(found.seconds)
    assert all(stage.seconds >= 0 for stage in found.stages)


def test_latencies_are_the_client_s_and_tokens_after_the_first_share_their_time():
    found = one(call(95, 0.031), SPANS)
    assert found.ttft_seconds == pytest.approx(0.031)  # from its last byte, which was here after 1 ms
    assert found.tpot_seconds == pytest.approx((0.092 - 0.032) / 5)
    assert (found.prompt_tokens, found.output_tokens, found.attempts) == (7, 6, 1)


def test_a_transfer_s_speed_is_of_the_bytes_on_their_way_not_of_the_waiting():
    (transfer,) = one(call(95, 0.031), SPANS).transfers
    assert transfer.gigabytes_per_second == pytest.approx(4.0)
    assert (transfer.transport, transfer.blocks, transfer.seconds) == ("cma", 4, pytest.approx(0.008))


def test_a_budget_says_which_stage_used_it_and_its_parts_are_the_whole():
    ttft, tpot = budgets(one(call(95, 0.034), SPANS), 0.03, 0.02)
    assert (ttft.name, ttft.met, tpot.name, tpot.met) == ("TTFT", False, "TPOT", True)
    assert ttft.parts[0] == ("prefill", pytest.approx(0.02))
    assert dict(ttft.parts)["first token out"] == pytest.approx(0.005)
    assert sum(seconds for _, seconds in ttft.parts) == pytest.approx(ttft.used_seconds)
    assert tpot.parts[0] == ("decode", pytest.approx(0.01))
    assert sum(seconds for _, seconds in tpot.parts) == pytest.approx(tpot.used_seconds)


def test_without_a_target_or_a_first_token_there_is_no_budget():
    assert budgets(one(call(95, 0.031), SPANS), None, None) == []
    assert budgets(one(call(95), []), 1.0, 1.0) == []


def test_an_interrupted_request_shows_both_attempts_and_what_recovery_took():
    first = [span(traces.PREFILL_FORWARD, 10, 30, **of())]
    second = [span(traces.PREFILL_FORWARD, 80, 90, **of(attempt=1)), span(traces.DECODE_GENERATE, 90, 94, **of(1))]
    second[1].attributes[traces.OUTPUT_TOKENS] = 3
    found = one(call(95, 0.031), [*second, *first])
    assert found.attempts == 2
    assert ("recovery", 50) in ms_of(found.stages)


def test_each_choice_of_a_call_is_a_request_of_its_own():
    other = [span(traces.PREFILL_FORWARD, 12, 40, **of(choice=10)), span(traces.PREFILL_FORWARD, 9, 9, **of(choice=2))]
    found = waterfalls(call(95, 0.031), [*other, *SPANS])
    assert [one.request.rpartition("-")[2] for one in found] == ["0", "2", "10"]
    assert found[2].first_token_seconds == pytest.approx(0.04)  # the call's first token was another choice's


def test_another_call_of_the_same_trace_is_left_out():
    stranger = span(traces.DECODE_GENERATE, 5, 6, **{traces.REQUEST_ID: "other.1-0", traces.OUTPUT_TOKENS: 1})
    tokenized = span(traces.GATEWAY_TOKENIZE, 5, 6, parent="another root")
    assert waterfalls(call(95, 0.031), [*SPANS, stranger, tokenized]) == waterfalls(call(95, 0.031), SPANS)


@pytest.mark.parametrize("name", ["mine", f"chatcmpl-{CALL}", CALL, f"{CALL}-0", f"chatcmpl-{CALL}-1", "t" * 32])
def test_a_call_is_found_by_every_id_that_somebody_may_have(name: str):
    assert answers_to(call(95), name)


@pytest.mark.parametrize("name", ["min", "chatcmpl-mine", "mine.0a1b2c3d-x", "", "-"])
def test_a_call_is_not_found_by_another_id(name: str):
    assert not answers_to(call(95), name)
