from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import client_left
from services.gateway.events import (
    Ask,
    Asked,
    Effect,
    Ended,
    Event,
    GivenUp,
    News,
    SchedulerChanged,
    StopFound,
    Submit,
    Unanswered,
)
from services.gateway.requests import MOST_FRUITLESS_ATTEMPTS, Patience, RequestLife
from shared.messages.requests import Accepted, RefusalReason, Refused
from shared.messages.tokens import Finish, RequestInterrupted, TokenLogprobs, TokenRow
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling

REQUEST = RequestId("call-0")
ANSWER = list(range(100, 120))
END_TOKEN = 7


class Scene:
    """A life and its clock."""

    def __init__(self, max_tokens: int = 20, logprobs: int | None = None) -> None:
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=(END_TOKEN,), logprobs=logprobs)
        self.life = RequestLife(REQUEST, InstanceId("gateway-0"), "model", (1, 2, 3), sampling, Patience(5.0, 30.0))
        self.now = 10.0
        self.begun = self.life.begin(self.now)

    def step(self, event: Event) -> Sequence[Effect]:
        return self.life.step(event, self.now)

    def accept(self, attempt: int = 0) -> Sequence[Effect]:
        return self.step(Accepted(request=REQUEST, attempt=attempt))

    def refuse(self, reason: RefusalReason, attempt: int = 0) -> Sequence[Effect]:
        return self.step(
            Refused(request=REQUEST, attempt=attempt, reason=reason, message="why", retry_after_seconds=4.0)
        )

    def row(self, index: int, *tokens: int, attempt: int = 0, finish: Finish | None = None) -> Sequence[Effect]:
        return self.step(TokenRow(request=REQUEST, attempt=attempt, index=index, tokens=tokens, finish=finish))

    def interrupt(self, attempt: int) -> Sequence[Effect]:
        return self.step(RequestInterrupted(request=REQUEST, attempt=attempt, reason="lost"))


def running() -> Scene:
    scene = Scene()
    scene.accept()
    return scene


def test_a_request_is_submitted_then_taken_then_its_tokens_are_news_until_its_end() -> None:
    scene = Scene()
    assert scene.begun == (Submit(0),)
    assert scene.accept() == (News(),)
    assert scene.row(0, 100) == (News(),)
    assert scene.row(1, 101, END_TOKEN, finish="stop") == (Ended(abort=False, taken=True), News())
    assert scene.life.tokens == [100, 101, END_TOKEN]
    assert scene.life.end is not None
    assert (scene.life.end.outcome, scene.life.end.output_tokens, scene.life.end.error) == ("stop", 3, None)


def test_a_repeated_row_changes_nothing() -> None:
    scene = running()
    scene.row(0, 100, 101)
    assert scene.row(0, 100, 101) == ()
    assert scene.row(1, 101, 102) == (News(),)
    assert scene.life.tokens == [100, 101, 102]


def test_a_row_behind_a_gap_waits_until_the_workers_were_asked_for_what_is_missing() -> None:
    scene = running()
    scene.row(0, 100)
    assert scene.row(2, 102) == (Ask(),)
    assert scene.life.tokens == [100]
    assert scene.row(1, 101) == (News(),)
    assert scene.life.tokens == [100, 101, 102]


def test_an_end_that_waits_behind_a_gap_ends_the_request_when_the_gap_is_filled() -> None:
    scene = running()
    scene.row(1, 101, finish="length")
    assert scene.row(0, 100) == (Ended(abort=False, taken=True), News())
    assert scene.life.finish == "length"


def test_tokens_of_another_attempt_are_dropped() -> None:
    scene = running()
    scene.interrupt(0)
    assert scene.row(0, 100, attempt=0) == ()
    assert scene.row(0, 200, attempt=2) == ()
    assert scene.life.tokens == []


def test_rows_without_the_log_probabilities_that_were_asked_for_are_dropped() -> None:
    scene = Scene(logprobs=0)
    assert scene.row(0, 100) == ()
    scored = TokenRow(request=REQUEST, attempt=0, index=0, tokens=(100,), logprobs=(TokenLogprobs(token=-1.0),))
    assert scene.step(scored) == (News(),)


def test_an_interrupted_request_is_submitted_again_with_what_it_has() -> None:
    scene = running()
    scene.row(0, 100, 101)
    assert scene.interrupt(0) == (Submit(1),)
    work = scene.life.work()
    assert (work.attempt, work.prompt, work.generated, work.sampling.max_tokens) == (1, (1, 2, 3), (100, 101), 20)
    scene.accept(1)
    assert scene.row(2, 102, attempt=1) == (News(),)
    assert scene.life.tokens == [100, 101, 102]


def test_it_is_submitted_again_with_the_names_of_those_where_it_failed_last() -> None:
    scene = Scene(max_tokens=1000)
    for attempt, name in enumerate(("decode-1", "decode-1", "decode-2", "decode-3", "decode-4", "decode-5")):
        scene.row(2 * attempt, 1, 2, attempt=attempt)
        failed = RequestInterrupted(request=REQUEST, attempt=attempt, reason="it broke", failed_at=InstanceId(name))
        assert scene.step(failed) == (Submit(attempt + 1),)
    assert scene.life.work().avoid == ("decode-2", "decode-3", "decode-4", "decode-5")
    scene.interrupt(6)
    assert scene.life.work().avoid == (), "elsewhere is no better"


def test_an_interruption_of_an_older_attempt_changes_nothing() -> None:
    scene = running()
    scene.interrupt(0)
    assert scene.interrupt(0) == ()
    assert scene.life.attempt == 1


def test_an_interruption_after_the_last_token_is_its_end() -> None:
    scene = Scene(max_tokens=2)
    scene.row(0, 100, 101)
    assert scene.interrupt(0) == (Ended(abort=False, taken=True), News())
    assert scene.life.finish == "length"


def test_an_abort_that_nobody_asked_for_is_an_interruption() -> None:
    scene = running()
    scene.row(0, 100)
    assert scene.row(1, finish="aborted") == (Submit(1),)


def test_a_request_that_is_interrupted_again_and_again_without_progress_fails() -> None:
    scene = running()
    for attempt in range(MOST_FRUITLESS_ATTEMPTS):
        assert scene.interrupt(attempt) == (Submit(attempt + 1),)
        scene.row(attempt, 100 + attempt, attempt=attempt + 1)  # prefill's first token is not progress
    assert scene.interrupt(MOST_FRUITLESS_ATTEMPTS) == (Ended(abort=True, taken=True), News())
    assert scene.life.end is not None
    assert scene.life.end.outcome == "failed"


def test_a_request_that_makes_progress_may_be_interrupted_any_number_of_times() -> None:
    scene = Scene(max_tokens=1000)
    for attempt in range(20):
        scene.row(2 * attempt, 1, 2, attempt=attempt)
        assert scene.interrupt(attempt) == (Submit(attempt + 1),)


def test_a_submission_that_nobody_answers_is_repeated_with_growing_pauses_until_patience_ends() -> None:
    scene = Scene()
    pauses = []
    while True:
        effects = scene.step(Unanswered(0))
        if not isinstance(effects[0], Submit):
            break
        pauses.append(effects[0].pause_seconds)
        scene.now += 0.5
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert max(pauses) == 1.0
    assert scene.now - 10.0 == 5.0
    assert effects == (Ended(abort=True, taken=False), News())
    assert scene.life.end is not None
    assert scene.life.end.error is not None
    assert (scene.life.end.error.status, scene.life.end.error.retry_after_seconds) == (503, 1.0)


@pytest.mark.parametrize(
    ("reason", "status"),
    [("queue_full", 429), ("no_instance", 503), ("too_long", 400), ("unknown_model", 404), ("invalid", 400)],
)
def test_a_new_request_that_is_refused_ends_with_the_status_of_the_reason(reason: RefusalReason, status: int) -> None:
    scene = Scene()
    assert scene.refuse(reason) == (Ended(abort=False, taken=False), News())
    assert scene.life.end is not None
    assert scene.life.end.error is not None
    assert scene.life.end.error.status == status


def test_a_scheduler_that_is_going_away_is_tried_again() -> None:
    assert isinstance(Scene().refuse("draining")[0], Submit)


@pytest.mark.parametrize("reason", ["queue_full", "no_instance", "unknown_model", "draining"])
def test_a_running_request_outlasts_refusals_for_a_while(reason: RefusalReason) -> None:
    scene = running()
    scene.row(0, 100)
    scene.interrupt(0)
    scene.now += 29.0
    assert isinstance(scene.refuse(reason, attempt=1)[0], Submit)
    scene.now += 2.0
    assert scene.refuse(reason, attempt=1)[0] == Ended(abort=True, taken=True)


def test_tokens_count_as_acceptance() -> None:
    scene = Scene()
    scene.row(0, 100)
    assert scene.life.taken
    assert scene.step(Unanswered(0)) == ()


def test_a_request_is_silent_after_a_second_without_a_word() -> None:
    scene = running()
    assert not scene.life.is_silent(10.9)
    assert scene.life.is_silent(11.0)
    scene.row(0, 100)
    assert not scene.life.is_silent(10.9)


def test_a_request_that_is_being_submitted_is_not_asked_about() -> None:
    scene = Scene()
    assert scene.life.want() is None
    assert not scene.life.is_silent(100.0)


def test_a_waiting_request_that_no_worker_knows_twice_in_a_row_is_asked_of_the_scheduler_and_keeps_its_attempt() -> (
    None
):
    scene = running()
    assert scene.step(Asked(0, known=False)) == ()
    assert scene.step(Asked(0, known=False)) == (Submit(0),)
    assert scene.accept() == ()
    assert scene.row(0, 100) == (News(),)


def test_if_it_was_running_the_second_question_comes_at_once() -> None:
    scene = running()
    scene.row(0, 100)
    assert scene.step(Asked(0, known=False)) == (Ask(),)
    assert scene.step(Asked(0, known=False)) == (Submit(1),)


def test_a_request_that_somebody_knows_is_left_alone() -> None:
    scene = running()
    for known in (False, True, False, True):
        assert scene.step(Asked(0, known)) == ()


def test_waiting_in_the_queue_is_no_failure_and_asked_about_ever_less_often() -> None:
    scene = running()
    for _ in range(10):
        scene.step(Asked(0, known=False))
        assert scene.step(Asked(0, known=False)) == (Submit(0),)
        scene.accept()
    assert not scene.life.is_silent(scene.now + 7.9)
    assert scene.life.is_silent(scene.now + 8.0)


def test_a_new_scheduler_is_no_reason_to_wait_any_longer() -> None:
    scene = running()
    for _ in range(4):
        scene.step(Asked(0, known=False))
        scene.step(Asked(0, known=False))
        scene.accept()
    assert not scene.life.is_silent(scene.now + 1.0)
    assert scene.step(SchedulerChanged()) == (Ask(),)
    assert scene.step(Asked(0, known=False)) == ()
    assert scene.life.is_silent(scene.now + 1.0)


def test_a_running_request_does_not_care_who_schedules() -> None:
    scene = running()
    scene.row(0, 100)
    assert scene.step(SchedulerChanged()) == ()


def test_a_gap_that_its_holder_cannot_fill_is_healed_by_submitting_again() -> None:
    scene = running()
    scene.row(0, 100)
    scene.row(5, 105)
    assert scene.step(Asked(0, known=True)) == (Ask(),)
    assert scene.step(Asked(0, known=True)) == (Submit(1),)
    assert scene.life.work().generated == (100,)


def test_a_stop_string_ends_the_request_and_stops_the_workers() -> None:
    scene = running()
    scene.row(0, 100, 101, 102)
    assert scene.step(StopFound(tokens=2)) == (Ended(abort=True, taken=True), News())
    assert scene.life.end is not None
    assert (scene.life.end.outcome, scene.life.end.output_tokens) == ("stop", 2)


def test_nothing_changes_a_request_that_has_ended() -> None:
    scene = running()
    scene.step(GivenUp(client_left(), "aborted"))
    for effects in (scene.row(0, 100), scene.interrupt(0), scene.accept(), scene.step(StopFound(1))):
        assert effects == ()
    assert scene.life.tokens == []


def test_time_per_token_is_measured_between_the_first_and_the_last() -> None:
    scene = running()
    scene.now = 12.0
    scene.row(0, 100)
    assert scene.life.seconds_per_token() is None
    scene.now = 13.0
    scene.row(1, 101, 102)
    assert scene.life.first_token_at == 12.0
    assert scene.life.seconds_per_token() == 0.5


MISHAPS = st.lists(
    st.tuples(st.sampled_from(["tell", "lose", "repeat", "ask", "ask in vain", "interrupt"]), st.integers(1, 4)),
    max_size=60,
)


@given(mishaps=MISHAPS)
def test_whatever_is_lost_or_repeated_the_answer_comes_out_once_and_in_order(
    mishaps: list[tuple[str, int]],
) -> None:
    """A worker tells the answer from where the current attempt began; the bus loses and repeats; then all is healed."""
    scene = Scene(max_tokens=len(ANSWER))
    life, told, began = scene.life, 0, 0

    def tell(start: int, end: int) -> None:
        end = min(end, len(ANSWER))
        finish: Finish | None = "length" if end == len(ANSWER) else None
        scene.row(start, *ANSWER[start:end], attempt=life.attempt, finish=finish)

    for what, size in mishaps:
        before = life.attempt
        match what:
            case "tell":
                tell(told, told + size)
                told = min(told + size, len(ANSWER))
            case "lose":
                told = min(told + size, len(ANSWER))
            case "repeat":
                tell(max(began, told - size), told)
            case "ask":
                tell(len(life.tokens), told)
                scene.step(Asked(life.attempt, known=True))
            case "ask in vain":
                scene.step(Asked(life.attempt, known=False))
            case "interrupt" if life.tokens:
                scene.interrupt(life.attempt)
        if life.attempt != before:
            told = began = len(life.tokens)
        assert life.tokens == ANSWER[: len(life.tokens)]
    if life.end is None:
        tell(len(life.tokens), len(ANSWER))
    assert life.end is not None
    assert life.end.outcome in ("length", "failed")
    assert life.tokens == ANSWER or life.end.outcome == "failed"
