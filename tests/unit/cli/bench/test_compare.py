"""Two results side by side."""

from typing import Any

import numpy as np
import pytest

from cli.bench.calls import Answer
from cli.bench.compare import differences, figures, pairs
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise
from tests.unit.cli.bench.answers import answered, failed

PROMISE = Promise(ttft=0.2, tpot=0.02)


def run(answers: list[Answer], rate: float = 1.0) -> dict[str, Any]:
    return {"rate": rate, "valid": True, "answers": [answer.to_json() for answer in answers]}


def answers(scale: float, seed: int) -> list[Answer]:
    random = np.random.default_rng(seed)
    return [answered(ttft=scale * random.lognormal(-2.5, 0.4)) for _ in range(200)]


def test_a_difference_that_is_there_is_outside_the_interval_and_one_that_is_not_is_inside():
    found = {figure.name: figure for figure in figures(run(answers(1, 1)), run(answers(1.5, 2)), PROMISE, PROMISE)}
    ttft, tpot = found["TTFT p50 ms"], found["TPOT p50 ms"]
    assert ttft.ratio == pytest.approx(1.5, rel=0.15)
    assert ttft.ratio_interval is not None
    assert ttft.ratio_interval[0] > 1.2
    assert tpot.ratio_interval is not None
    assert tpot.ratio_interval[0] <= 1 <= tpot.ratio_interval[1]


def test_the_same_twice_gives_the_same():
    one, two = run(answers(1, 1)), run(answers(1, 2))
    assert figures(one, two, PROMISE, PROMISE) == figures(one, two, PROMISE, PROMISE)


def test_nothing_kept_has_no_ratio():
    kept = figures(run([failed(), failed()]), run([answered()]), PROMISE, PROMISE)[0]
    assert (kept.a, kept.b, kept.ratio, kept.ratio_interval) == (0, 1, None, None)


def test_runs_of_the_same_rate_belong_together():
    a, b = [run([], rate) for rate in (1.0, 2.0)], [run([], rate) for rate in (2.0, 3.0)]
    assert [(x["rate"], y["rate"]) for x, y in pairs(a, b)] == [(2.0, 2.0)]
    assert len(pairs([run([], 1.0)], [run([], 5.0)])) == 1
    with pytest.raises(Problem, match="no rate in common"):
        pairs(a, [run([], 7.0), run([], 9.0)])


def test_what_was_not_alike_is_said():
    a = {"workload": {"seed": 1}, "promise": {"ttft_s": 1}, "machine": {"cpu": "x", "cores": 2}}
    b = a | {"workload": {"seed": 2}}
    assert differences(a, b) == ["workload seed: 1 and 2"]
    assert differences(a, a) == []
