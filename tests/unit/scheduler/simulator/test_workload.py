"""Requests drawn from laws and read from traces."""

from pathlib import Path

import numpy as np
import pytest

from services.scheduler.simulator.workload import BadWorkload, Trace, draw, read_trace, resample


@pytest.mark.parametrize(
    ("workload", "prompt", "answer"),
    [("chatbot", 755.5, 200.3), ("code", 171.3, 98.2), ("summarization", 1738.3, 90.7)],
)
def test_lengths_have_the_means_that_the_paper_gives(workload: str, prompt: float, answer: float):
    trace = draw(workload, 60_000, seed=1)
    assert np.mean(trace.inputs) == pytest.approx(prompt, rel=0.015)
    assert np.mean(trace.outputs) == pytest.approx(answer, rel=0.03)
    assert max(i + o for i, o in zip(trace.inputs, trace.outputs, strict=True)) < 2048


def test_the_same_seed_gives_the_same_requests_and_another_seed_others():
    assert draw("chatbot", 500, seed=3) == draw("chatbot", 500, seed=3)
    assert draw("chatbot", 500, seed=3) != draw("chatbot", 500, seed=4)


def test_lengths_do_not_depend_on_how_requests_arrive():
    even, bursty = draw("chatbot", 300, seed=5, cv=0), draw("chatbot", 300, seed=5, cv=3)
    assert even.inputs == bursty.inputs
    assert even.cv == pytest.approx(0, abs=1e-9)
    assert draw("chatbot", 50_000, seed=5, cv=3).cv == pytest.approx(3, rel=0.1)


def test_arrivals_have_mean_rate_one_and_stretch_to_every_rate():
    trace = draw("fixed:512/64", 50_000, seed=2)
    assert trace.rate == pytest.approx(1.0, rel=0.02)
    assert trace.stretched(1 / 4).rate == pytest.approx(4 * trace.rate)
    assert set(trace.inputs) == {512}
    assert set(trace.outputs) == {64}


def test_a_resampled_trace_keeps_pairs_of_lengths_and_the_burstiness():
    recorded = Trace("recorded", draw("code", 4000, seed=7, cv=2).arrivals, [10, 20] * 2000, [1, 2] * 2000)
    again = resample(recorded, 20_000, seed=1)
    assert set(zip(again.inputs, again.outputs, strict=True)) == {(10, 1), (20, 2)}
    assert again.cv == pytest.approx(recorded.cv, rel=0.1)


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path):
    file = tmp_path / "calls.jsonl"
    file.write_text(
        '{"arrival_s": 7.5, "input_len": 3, "output_len": 4}\n\n{"arrival_s": 5, "input_len": 1, "output_len": 2}\n'
    )
    assert read_trace(file) == Trace("calls", [0.0, 2.5], [1, 3], [2, 4])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ('{"arrival_s": 1}\n', "line 1: wanted arrival_s"),
        ('{"arrival_s": 1, "input_len": 5, "output_len": 0}\n', "at least 1"),
        ('{"arrival_s": 1, "input_len": 5.5, "output_len": 1}\n', "5.5 tokens"),
        ('{"arrival_s": 1, "input_len": 1e999, "output_len": 1}\n', "line 1"),
        ('{"arrival_s": 0, "input_len": 5, "output_len": 1}\nnonsense\n', "line 2"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, complaint: str):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(BadWorkload, match=complaint):
        read_trace(file)


@pytest.mark.parametrize("workload", ["poetry", "fixed:12", "fixed:0/4", "fixed:a/b"])
def test_an_unknown_workload_is_refused(workload: str):
    with pytest.raises(BadWorkload):
        draw(workload, 10, seed=0)
