"""A change of traffic is noticed soon, and none is seen where there is none."""

import random
from collections.abc import Iterator

import pytest

from services.scheduler.replanning.shift import LEVEL, Shift, ShiftDetector, distance, least_distance
from services.scheduler.simulator.workload import draw

Request = tuple[float, int, int]  # gap, prompt, answer


def requests(workload: str, count: int, seed: int, cv: float = 1.0, rate: float = 1.0) -> Iterator[Request]:
    trace = draw(workload, count, seed, cv)
    before = -1.0
    for arrival, prompt, answer in zip(trace.arrivals, trace.inputs, trace.outputs, strict=True):
        yield (arrival - before) / rate, prompt, answer
        before = arrival


def first_shift(*traffic: Iterator[Request]) -> tuple[int, Shift] | None:
    """(requests until it was seen, what was seen)."""
    detector, at, count = ShiftDetector(), 0.0, 0
    for part in traffic:
        for gap, prompt, answer in part:
            at, count = at + gap, count + 1
            shift = detector.arrived(at, prompt) or detector.answered(answer)
            if shift is not None:
                return count, shift
    return None


@pytest.mark.parametrize("before", [150, 1000, 3000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_code_that_becomes_summarization_is_noticed_within_the_first_100_requests(before: int, seed: int):
    seen = first_shift(requests("code", before, seed), requests("summarization", 100, seed + 100))
    assert seen is not None
    assert before < seen[0] <= before + 100
    assert seen[1].stream == "prompts"
    assert seen[1].median_before < 200
    assert seen[1].median_now > 1000


@pytest.mark.parametrize(
    ("workload", "seed", "cv"), [("chatbot", 11, 1.0), ("code", 12, 1.0), ("summarization", 13, 1.0), ("code", 14, 3.0)]
)
def test_ten_thousand_requests_of_one_kind_are_no_shift(workload: str, seed: int, cv: float):
    assert first_shift(requests(workload, 10_000, seed, cv)) is None


def test_a_rate_that_triples_is_a_shift_of_the_gaps():
    seen = first_shift(requests("code", 1500, 5), requests("code", 200, 6, rate=3.0))
    assert seen is not None
    assert seen[1].stream == "gaps"
    assert 1500 < seen[0] <= 1600
    assert "gaps between arrivals have changed" in str(seen[1])


def test_answers_that_get_longer_are_a_shift_of_their_own():
    seen = first_shift(requests("fixed:100/20", 500, 5), requests("fixed:100/60", 100, 6))
    assert seen is not None
    assert (seen[1].stream, seen[1].median_before) == ("answers", 20)


def test_the_distance_is_that_of_the_definition_with_and_without_equal_values():
    chance = random.Random(4)
    for _ in range(300):
        one = sorted(chance.randint(0, 9) for _ in range(chance.randint(1, 30)))
        other = sorted(chance.randint(0, 9) for _ in range(chance.randint(1, 30)))
        plain = max(
            abs(sum(v <= x for v in one) / len(one) - sum(v <= x for v in other) / len(other)) for x in range(10)
        )
        assert distance(one, other) == pytest.approx(plain)


def test_the_level_of_a_test_keeps_the_sum_over_ten_thousand_requests_at_one_percent():
    tests = 3 * (10_000 // 10 + 10_000 // 40)
    assert tests * LEVEL == pytest.approx(0.01)
    assert least_distance(1000, 100) == pytest.approx(0.273, abs=0.001)
