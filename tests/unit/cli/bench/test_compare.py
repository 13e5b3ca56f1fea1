"""Two results side by side."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cli.bench.calls import Answer
from cli.bench.compare import compare_reports, differences, figures, goodputs, pairs
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise
from tests.unit.cli.bench.answers import answered, failed

PROMISE = Promise(ttft=0.2, tpot=0.02)


def run(answers: list[Answer], rate: float = 1.0) -> dict[str, Any]:
    return {
        "rate": rate,
        "valid": True,
        "stopped": False,
        "kept": True,
        "answers": [answer.to_json() for answer in answers],
    }


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


def test_a_run_that_was_stopped_is_not_compared_as_if_it_were_whole():
    a, b = [run([], 1.0), run([], 2.0) | {"stopped": True}], [run([], 1.0), run([], 2.0)]
    assert [(x["rate"], y["rate"]) for x, y in pairs(a, b)] == [(1.0, 1.0)]
    with pytest.raises(Problem, match="no rate in common"):
        pairs(a[1:], b)


def test_the_ratio_of_two_searches_is_as_exact_as_their_steps():
    lost = {"kept": False, "stopped": True}
    a = {"goodput": 2.0, "runs": [run([], 2.0), run([], 2.5) | lost, run([], 4.0) | lost]}
    b = {"goodput": 3.0, "runs": [run([], 3.0), run([], 3.2) | lost]}
    assert goodputs(a, b).startswith("2 and 3 requests/s, B / A 1.50 (1.20-1.60 by the steps")


def test_two_experiments_are_compared_round_by_round():
    common = {"workload": {}, "promise": {}, "machine": {}}
    a = common | {"shapes": [{"shape": "2 colocated", "rates": [1.0, 2.0]}, {"shape": "other", "rates": [1.0]}]}
    b = common | {"shapes": [{"shape": "2 colocated", "rates": [2.0, 4.0]}]}
    console = Console(record=True, width=100, file=io.StringIO())
    compare_reports(console, ("a.json", a), ("b.json", b))
    said = console.export_text()
    assert "2.00 (2.00-2.00)" in said
    assert "other" not in said
    with pytest.raises(Problem, match="nothing in common"):
        compare_reports(console, ("a.json", a), ("b.json", common | {"runs": []}))


def test_what_was_not_alike_is_said():
    a = {"workload": {"seed": 1}, "promise": {"ttft_s": 1}, "machine": {"cpu": "x", "cores": 2}}
    b = a | {"workload": {"seed": 2}}
    assert differences(a, b) == ["workload seed: 1 and 2"]
    assert differences(a, a) == []
