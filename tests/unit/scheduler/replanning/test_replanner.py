"""When a search is asked for, and what its answer leads to."""

import pytest

from services.scheduler.replanning.replanner import (
    LEAST_GAIN,
    SAMPLE,
    Change,
    Found,
    Keep,
    Layout,
    Replanner,
    Search,
    decide,
)
from services.scheduler.replanning.shift import Shift
from services.scheduler.traffic import Call

NOW, OTHER = Layout(1, 2), Layout(2, 1)


class Driver:
    """Requests one after the other; each ends at once unless it is held."""

    def __init__(self) -> None:
        self.replanner, self.at = Replanner(), 0.0

    def serve(self, count: int, prompt: int, answer: int = 20) -> list[tuple[int, Shift | Search]]:
        """What was said, and after how many."""
        said: list[tuple[int, Shift | Search]] = []
        for number in range(1, count + 1):
            self.at += 0.5 + number % 7 / 10
            news: list[Shift | Search | None] = [self.replanner.arrived(self.at, prompt + number % 5)]
            news.append(self.replanner.served(Call(self.at, prompt + number % 5, answer)))
            said += [(number, one) for one in news if one is not None]
        return said

    def until_search(self) -> Search:
        self.serve(300, 50)
        ((_, shift), (_, search)) = self.serve(200, 900)
        assert isinstance(shift, Shift)
        assert isinstance(search, Search)
        return search


def test_a_shift_leads_to_one_search_over_what_came_after_it():
    search = Driver().until_search()
    assert 0.95 * SAMPLE <= len(search.calls) <= SAMPLE
    assert min(call.input_len for call in search.calls) >= 900
    arrivals = [call.arrival_s for call in search.calls]
    assert arrivals == sorted(arrivals)


def test_while_a_search_runs_nothing_more_is_asked():
    driver = Driver()
    driver.until_search()
    assert driver.serve(500, 50) == []


def test_after_an_answer_the_traffic_of_then_is_the_reference():
    driver = Driver()
    driver.until_search()
    driver.replanner.searched(NOW, [Found(NOW, 1.0)])
    assert driver.serve(1000, 900) == []
    assert [type(news) for _, news in driver.serve(250, 50)] == [Shift, Search]


def test_traffic_that_changes_again_during_the_search_is_noticed_after_it():
    driver = Driver()
    driver.until_search()
    assert driver.serve(700, 50) == []
    driver.replanner.searched(NOW, [Found(NOW, 1.0)])
    ((after, shift),) = driver.serve(20, 50)
    assert after <= 10
    assert isinstance(shift, Shift)
    assert shift.median_before > 800


def test_after_a_search_the_reference_grows_again():
    """So that less than what a sample of 100 can show is noticed."""
    driver = Driver()
    driver.until_search()
    driver.replanner.searched(NOW, [Found(NOW, 1.0)])
    driver.serve(1500, 900)
    ((_, shift), *_) = driver.serve(400, 901)
    assert isinstance(shift, Shift)
    assert shift.distance < 0.3


def test_a_sample_is_not_of_those_alone_whose_answers_are_short():
    """The first to arrive are waited for, although others have ended."""
    driver = Driver()
    driver.serve(300, 50)
    slow: list[Call] = []
    said: list[Shift | Search | None] = []
    for number in range(160):
        driver.at += 0.5 + number % 7 / 10
        shift = driver.replanner.arrived(driver.at, 900)
        call = Call(driver.at, 900, 400 if number % 10 == 0 else 5)
        if call.output_len > 5:
            slow.append(call)
        elif shift is None:
            said.append(driver.replanner.served(call))
    assert not any(isinstance(one, Search) for one in said)
    answers = [driver.replanner.served(call) for call in slow]
    (search,) = [one for one in answers if isinstance(one, Search)]
    assert any(call.output_len == 400 for call in search.calls)


def test_where_many_never_get_an_answer_enough_others_are_a_sample():
    driver = Driver()
    driver.serve(300, 50)
    searches = 0
    for number in range(800):
        driver.at += 0.5
        driver.replanner.arrived(driver.at, 900)
        if number % 3:  # every third one is refused
            searches += isinstance(driver.replanner.served(Call(driver.at, 900, 5)), Search)
    assert searches == 1


def test_a_layout_that_serves_enough_more_is_a_change_with_its_reasons():
    driver = Driver()
    driver.until_search()
    change = driver.replanner.searched(NOW, [Found(NOW, 2.0), Found(OTHER, 3.0)])
    assert isinstance(change, Change)
    assert change.layout == OTHER
    assert "lengths of prompts have changed: median 5" in change.reasons[0]
    assert "with 902 tokens" in change.reasons[1]
    assert change.reasons[2].endswith(
        "2 prefill + 1 decode serves 3 requests/s within the targets, 1 prefill + 2 decode 2, 50% more"
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([Found(NOW, 2.0), Found(OTHER, 2.0 * (1 + LEAST_GAIN) - 0.01)], "not worth it"),
        ([Found(NOW, 2.0)], "not worth it"),
        ([Found(NOW, 0.0), Found(OTHER, 0.0)], "no layout keeps the targets"),
        ([], "did not end"),
    ],
)
def test_what_gains_too_little_is_no_change(found: list[Found], reason: str):
    decision = decide(NOW, found)
    assert isinstance(decision, Keep)
    assert reason in decision.reason


def test_a_layout_that_serves_nothing_is_left_for_one_that_serves_anything():
    assert decide(NOW, [Found(NOW, 0.0), Found(OTHER, 0.5)]) == Change(
        OTHER, ("2 prefill + 1 decode serves 0.5 requests/s within the targets, 1 prefill + 2 decode 0",)
    )


def test_of_equals_the_one_that_differs_least_is_taken():
    found = [Found(Layout(1, 5), 1.0), Found(Layout(4, 2), 2.0), Found(Layout(2, 4), 2.0)]
    decision = decide(Layout(1, 5), found)
    assert isinstance(decision, Change)
    assert decision.layout == Layout(2, 4)
