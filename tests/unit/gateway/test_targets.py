import pytest

from services.gateway.errors import ApiError
from services.gateway.targets import LatencyTargets

BOTH = LatencyTargets(ttft_seconds=0.2, tpot_seconds=0.02)


@pytest.mark.parametrize(
    ("ttft", "tpot", "verdict"),
    [(0.2, 0.02, "met"), (0.3, 0.02, "ttft_missed"), (0.2, 0.03, "tpot_missed"), (0.3, 0.03, "both_missed")],
)
def test_a_finished_request_is_held_to_both_targets(ttft: float, tpot: float, verdict: str):
    assert BOTH.judge("stop", ttft, tpot) == verdict
    assert BOTH.judge("length", ttft, tpot) == verdict


def test_one_token_has_no_time_per_token_to_miss():
    assert BOTH.judge("stop", 0.1, None) == "met"


def test_only_given_targets_count():
    assert LatencyTargets(ttft_seconds=0.2).judge("stop", 0.1, 9.0) == "met"
    assert LatencyTargets(tpot_seconds=0.2).judge("stop", 9.0, 0.1) == "met"
    assert LatencyTargets().judge("stop", 9.0, 9.0) is None


def test_a_failure_misses_its_targets_and_a_client_that_left_misses_nothing():
    assert BOTH.judge("failed", None, None) == "both_missed"
    assert BOTH.judge("failed", 0.1, 0.01) == "both_missed"
    assert LatencyTargets(ttft_seconds=0.2).judge("failed", None, None) == "ttft_missed"
    assert BOTH.judge("aborted", 9.0, 9.0) is None


def test_a_client_s_headers_come_before_the_default():
    own = BOTH.or_of({"x-llm-d-slo-tpot-ms": "50"})
    assert own == LatencyTargets(ttft_seconds=0.2, tpot_seconds=0.05, origin="request")
    assert BOTH.or_of({"other": "1"}) is BOTH


@pytest.mark.parametrize("text", ["", "0", "-3", "nan", "inf", "fast"])
def test_a_header_that_is_no_target_is_refused_by_its_name(text: str):
    with pytest.raises(ApiError, match="x-llm-d-slo-ttft-ms"):
        BOTH.or_of({"x-llm-d-slo-ttft-ms": text})
