"""When a run is refused, and which runs of a search have to be valid."""

import pytest
from rich.console import Console

from cli.bench.load import Run
from cli.bench.measure import Measured, Measurement
from cli.bench.prompts import TokenPrompts
from cli.bench.screen import Screen
from cli.bench.server import Server
from cli.bench.session import decisive
from cli.bench.statistics import summary
from cli.bench.verdict import Verdict, allowed_lateness, judge, judge_burst
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.workload import draw
from tests.unit.cli.bench.answers import answered

PROMISE = Promise(ttft=0.2, tpot=0.02)
SERVER = Server(url="http://x", model="m", api_key="", most_tokens=None, prompts=TokenPrompts(256, 0), fields=())


def measured(rate: float, kept: bool) -> Measured:
    answers = [answered(ttft=0.1 if kept else 0.5)]
    run = Run("bench-0", answers, 0.0)
    return Measured(rate, run, PROMISE, summary(answers, PROMISE), {}, Verdict(()))


def test_a_generator_in_time_is_believed():
    assert judge(0.009, 0.5, PROMISE).valid


def test_one_that_fell_behind_is_not_and_the_reason_has_the_figures():
    verdict = judge(0.030, 0.5, PROMISE)
    assert not verdict.valid
    assert "30 ms late, 10 ms are allowed" in verdict.reasons[0]


def test_requests_that_come_all_at_once_say_nothing_of_a_rate():
    assert judge_burst(40.0, 20, 0.5, PROMISE).valid
    verdict = judge_burst(400.0, 20, 0.05, PROMISE)
    assert "20 requests at 400/s are a burst that a TTFT of 0.2 s absorbs" in verdict.reasons[0]
    assert "--requests 160" in verdict.reasons[0]


def test_one_that_has_no_time_left_is_not():
    assert "95% of a core" in judge(0.001, 0.95, PROMISE).reasons[0]


@pytest.mark.parametrize(("ttft", "allowed"), [(0.1, 0.01), (1.0, 0.05)])
def test_what_is_allowed_grows_with_the_target(ttft: float, allowed: float):
    assert allowed_lateness(Promise(ttft=ttft, tpot=0.1)) == pytest.approx(allowed)


def test_of_a_search_the_runs_on_both_sides_of_the_answer_matter():
    done = [measured(rate, rate <= 2) for rate in (1.0, 4.0, 2.0, 2.8, 2.2)]
    assert [one.rate for one in decisive(done, 2.0)] == [2.0, 2.2]
    assert decisive(done, None) == done


def test_a_run_keeps_its_promise_only_if_it_is_valid_and_went_to_its_end():
    kept = measured(1.0, True)
    assert kept.kept
    assert not Measured(1.0, kept.run, PROMISE, kept.summary, {}, Verdict(("late",))).kept
    stopped = Run("bench-0", kept.run.answers, 0.0, stopped=True)
    assert not Measured(1.0, stopped, PROMISE, kept.summary, {}, Verdict(())).kept


class Scripted(Measurement):
    """Keeps the promise up to 3 requests/s."""

    def at(self, rate: float, *, requests: int | None = None, until_lost: bool = False) -> Measured:
        self.done.append(measured(rate, rate <= 3))
        return self.done[-1]


def test_a_search_finds_the_highest_rate_that_is_kept():
    measurement = Scripted(SERVER, draw("fixed:8/4", 10, 0), 0, PROMISE, Screen(Console(), "", PROMISE))
    assert measurement.search(1.0, 0.05) == pytest.approx(3, rel=0.05)
    assert len(measurement.done) < 12
