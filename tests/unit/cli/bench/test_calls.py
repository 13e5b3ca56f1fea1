"""What is sent, and what counts as served."""

import json

import pytest

from cli.bench.calls import Answer, Call, schedule
from cli.bench.measure import is_lost
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.workload import draw
from tests.unit.cli.bench.answers import answered, failed

PROMISE = Promise(ttft=0.2, tpot=0.02, share=0.9)


def test_the_first_requests_of_a_trace_only_warm_up():
    calls = schedule(draw("fixed:8/4", 10, 0).stretched(0.5), 3)
    assert [call.warms_up for call in calls] == [True] * 3 + [False] * 7
    assert calls[0] == Call(0.0, 8, 4, warms_up=True)
    assert calls[-1].due == draw("fixed:8/4", 10, 0).arrivals[-1] / 2


def test_lengths_are_scaled_and_never_vanish():
    trace = draw("chatbot", 50, 1)
    scaled = trace.scaled(0.01)
    assert min(scaled.inputs + scaled.outputs) == 1
    assert scaled.inputs[0] == max(1, round(trace.inputs[0] / 100))
    assert scaled.arrivals == trace.arrivals


def test_ttft_counts_from_the_instant_it_was_due():
    answer = answered(ttft=0.3, due=5.0, late=0.2)
    assert answer.ttft == pytest.approx(0.3)
    assert answer.late == pytest.approx(0.2)


def test_tpot_is_the_mean_after_the_first_token_and_zero_without_a_second():
    assert answered(tpot=0.05, tokens=21).tpot == pytest.approx(0.05)
    assert answered(tokens=1).tpot == 0


def test_both_targets_must_be_kept():
    assert answered(0.1, 0.01).keeps(0.2, 0.02)
    assert not answered(0.3, 0.01).keeps(0.2, 0.02)
    assert not answered(0.1, 0.03).keeps(0.2, 0.02)
    assert not failed().keeps(9, 9)


def test_a_missed_target_is_known_before_the_answer_ends():
    waiting = Answer(Call(1.0, 5, 5), sent=1.0)
    assert not waiting.has_missed(1.1, 0.2, 0.02)
    assert waiting.has_missed(1.3, 0.2, 0.02)
    streaming = Answer(Call(1.0, 5, 5), sent=1.0, first=1.1)
    assert not streaming.has_missed(9.0, 0.2, 0.02)


def test_a_run_is_lost_when_one_more_than_allowed_has_missed():
    kept, missed = [answered() for _ in range(18)], [failed(), failed()]
    assert not is_lost([*kept, *missed], 10.0, PROMISE)
    assert is_lost([*kept[1:], *missed, failed()], 10.0, PROMISE)


def test_an_answer_is_the_same_after_the_file():
    for answer in (answered(), failed()):
        again = Answer.from_json(json.loads(json.dumps(answer.to_json())))
        assert (again.ttft, again.tpot, again.ended, again.error) == (
            pytest.approx(answer.ttft) if answer.ttft else None,
            pytest.approx(answer.tpot) if answer.tpot else None,
            answer.ended,
            answer.error,
        )
