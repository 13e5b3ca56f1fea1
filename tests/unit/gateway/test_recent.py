import pytest

from services.gateway.recent import KEPT_REQUESTS, SHOWN_REQUESTS, EndedRequest, RecentRequests, percentiles
from shared.messages.requests import Outcome
from shared.specs.ids import RequestId
from shared.telemetry.metrics import Verdict

NOW = 1_000_000.0


def ended(
    at: float = NOW,
    verdict: Verdict | None = None,
    outcome: Outcome = "stop",
    ttft: float | None = 0.1,
    name: str = "r",
) -> EndedRequest:
    return EndedRequest(
        request=RequestId(name),
        trace="",
        ended_at=at,
        outcome=outcome,
        attempts=1,
        prompt_tokens=3,
        output_tokens=10,
        ttft_seconds=ttft,
        tpot_seconds=None,
        total_seconds=1.0,
        verdict=verdict,
    )


def recent(*requests: EndedRequest) -> RecentRequests:
    found = RecentRequests()
    for request in requests:
        found.note(request)
    return found


def test_percentiles_are_values_that_occurred():
    assert percentiles([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert percentiles([]) is None


def test_attainment_is_the_share_that_met_its_targets_of_those_that_had_some():
    figures = recent(ended(verdict="met"), ended(verdict="met"), ended(verdict="ttft_missed"), ended()).figures(NOW)
    assert (figures["judged"], figures["attainment"], figures["requests"]) == (3, pytest.approx(2 / 3), 4)
    assert recent(ended()).figures(NOW)["attainment"] is None


def test_figures_forget_what_is_older_than_their_window():
    figures = recent(ended(NOW - 61, ttft=9.0, outcome="failed"), ended(NOW - 1, ttft=0.1)).figures(NOW)
    assert figures["ttft"]["p99"] == 0.1
    assert (figures["requests"], figures["failed"]) == (1, 0)


def test_history_says_what_was_good_in_each_five_seconds():
    history = recent(
        ended(NOW - 301),
        ended(NOW - 4.9),
        ended(NOW + 1, verdict="met"),
        ended(NOW + 2, verdict="tpot_missed"),
        ended(NOW + 3, outcome="aborted"),
    ).history(NOW + 4)
    assert [one["at"] for one in history[-2:]] == [NOW - 5, NOW]
    assert [one["good_per_second"] for one in history[-2:]] == [0.2, 0.2]
    assert [one["other_per_second"] for one in history[-2:]] == [0.0, 0.4]
    assert history[-1]["tokens_per_second"] == 6.0
    assert sum(one["good_per_second"] for one in history[:-2]) == 0


def test_the_latest_come_first_and_nothing_grows_for_ever():
    many = recent(*(ended(name=str(number)) for number in range(KEPT_REQUESTS + 10)))
    assert [one.request for one in many.latest()[:2]] == [str(KEPT_REQUESTS + 9), str(KEPT_REQUESTS + 8)]
    assert len(many.latest()) == SHOWN_REQUESTS
    assert many.figures(NOW)["requests"] == KEPT_REQUESTS
