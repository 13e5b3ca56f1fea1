"""What a run adds up to, and how sure that is."""

import numpy as np
import pytest

from cli.bench.statistics import attainment, attainment_by_scale, interval, spread, summary
from services.scheduler.planner.goodput import Promise
from tests.unit.cli.bench.answers import answered, failed

PROMISE = Promise(ttft=0.2, tpot=0.02)


def mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=1)


def test_attainment_counts_a_failed_request_as_missed():
    answers = [answered(), answered(ttft=0.3), answered(tpot=0.03), failed()]
    assert attainment(answers, PROMISE) == {"ttft": 0.5, "tpot": 0.5, "joint": 0.25}


def test_goodput_is_what_kept_both_targets_by_the_time_it_took():
    answers = [answered(due=0.0), answered(due=1.0), answered(ttft=0.5, due=2.0), failed(due=2.0)]
    found = summary(answers, PROMISE)
    assert found["seconds"] == pytest.approx(2.6)
    assert found["goodput"] == pytest.approx(2 / 2.6)
    assert found["output_tokens_per_second"] == pytest.approx(33 / 2.6)
    assert (found["requests"], found["failed"], found["shorter_than_wanted"]) == (4, 1, 0)


def test_a_run_without_an_answer_has_a_summary():
    assert summary([failed()], PROMISE)["ttft_s"] == {}


def test_a_looser_scale_is_kept_by_more():
    answers = [answered(ttft=0.1 * step) for step in range(1, 11)]
    assert attainment_by_scale(answers, PROMISE, [0.4, 1, 5]) == [0.0, 0.2, 1.0]


def test_percentiles_are_of_the_values():
    assert spread([0.0, 1.0])["p50"] == 0.5
    assert spread([]) == {}


def test_the_interval_is_seeded_and_holds_the_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    samples = [random.normal(1.0, 0.5, 60).tolist() for _ in range(200)]
    intervals = [interval(sample, mean) for sample in samples]
    assert intervals[0] == interval(samples[0], mean)
    held = sum(found is not None and found[0] <= 1.0 <= found[1] for found in intervals)
    assert 0.88 <= held / 200 <= 0.99
    assert interval([], mean) is None
