import io
from dataclasses import replace

from rich.console import Console, RenderableType

from cli.trace_screen import render, render_list
from shared.telemetry.waterfall import Stage, Transfer, Waterfall

STAGES = (
    Stage("HTTP in", "around", "", 0, 0.0, 0.010),
    Stage("prefill", "paper", "prefill-1", 0, 0.010, 0.040),
    Stage("decode", "paper", "decode-1", 0, 0.050, 0.050),
)
WATERFALL = Waterfall(
    call="mine.1",
    request="mine.1-0",
    trace="ab" * 16,
    started_ns=0,
    seconds=0.1,
    status=200,
    finish="stop",
    prompt_tokens=7,
    output_tokens=6,
    arrived_seconds=0.0,
    first_token_seconds=0.05,
    last_token_seconds=0.1,
    ttft_target_seconds=None,
    tpot_target_seconds=None,
    stages=STAGES,
    transfers=(Transfer(8_000_000, 4, "cma", 0.004, 0.002),),
)


def shown(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def row(text: str, stage: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(stage))


def test_a_bar_lies_where_in_the_request_its_stage_was():
    text = shown(render(WATERFALL, None, None, 40))
    assert row(text, "prefill").index("█") - row(text, "HTTP in").index("█") == 4
    assert row(text, "prefill").count("█") == 16
    assert row(text, "decode").count("█") == 20
    assert row(text, "decode").split()[-3:] == ["50.00", "50.0", "%"]


def test_it_tells_the_transfer_and_what_used_up_the_targets():
    text = shown(render(WATERFALL, 0.04, 0.05, 40))
    assert "8.00 MB in 4 blocks over cma, 4.00 GB/s" in text
    assert "TTFT 50.00 of 40.00 ms: missed, 125 % used, most by prefill 40.00" in text
    assert "TPOT 10.00 of 50.00 ms: met, 20 % used" in text


def test_the_targets_that_the_gateway_judged_by_are_the_default():
    judged = replace(WATERFALL, ttft_target_seconds=1.0)
    assert "TTFT 50.00 of 1000.00 ms: met" in shown(render(judged, None, None, 40))
    assert "TTFT 50.00 of 40.00 ms: missed" in shown(render(judged, 0.04, None, 40))


def test_a_request_that_got_no_answer_is_shown_too():
    failed = replace(WATERFALL, first_token_seconds=None, last_token_seconds=None, finish="", transfers=(), status=503)
    text = shown(render(failed, 1.0, 1.0, 40))
    assert "HTTP 503, no answer" in text
    assert "TTFT - ms, TPOT - ms" in text


def test_a_list_has_one_line_for_each_request_and_its_whole_id():
    text = shown(render_list([WATERFALL, replace(WATERFALL, request="other.2-0")], 20))
    assert "50.00" in row(text, row(text, "0").split()[0])
    assert "mine.1-0" in text
    assert "other.2-0" in text
