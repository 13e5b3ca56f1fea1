"""The pure parts of `./distserve chaos`: what happens when, what a difference is, and whom a fault has affected."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from cli.chaos.answers import Answer, Choice, Difference, difference
from cli.chaos.calls import calls
from cli.chaos.outages import GRACE_SECONDS, How, Outage, Stage, Trouble, judge
from cli.chaos.schedule import KINDS, QUIET_SECONDS, Fault, schedule
from cli.chaos.tally import Story, tally

LONG_SECONDS = 1800.0
CI = Path(__file__).parents[3] / ".ci" / "run"
# Of these others take care: each part is restarted alone, and tests stop NATS and leave gateways often enough.
NOT_IN_CI = {"all restarted in turn", "nats stopped", "clients leave"}
ROLES = {"decode": ["decode 1", "decode 2"], "nats": ["nats"], "gateway": ["gateway", "gateway 2"]}


def story(began_at: float, tokens_at: list[float], **more) -> Story:
    return Story(began_at, tokens_at=tokens_at, ended_at=tokens_at[-1], **more)


def fault(at: float, kind: str = "decode killed", seconds: float = 0.0) -> Fault:
    return Fault(at=at, kind=kind, seconds=seconds, pick=0)


def answer(text: str, tokens: list[str] | None = None, finish: str | None = "length") -> Answer:
    return Answer({0: Choice(text, tokens or [], finish)})


def test_the_seed_alone_decides_what_happens_when():
    assert schedule(5, LONG_SECONDS) == schedule(5, LONG_SECONDS)
    assert schedule(5, LONG_SECONDS) != schedule(6, LONG_SECONDS)
    assert schedule(5, 60.0) == [one for one in schedule(5, LONG_SECONDS) if one.at < 60.0 - QUIET_SECONDS]


def test_a_long_run_has_every_kind_of_fault_and_none_begins_before_the_one_before_has_ended():
    faults = schedule(1, LONG_SECONDS)
    assert {one.kind for one in faults} == set(KINDS)
    assert all(one.at + one.seconds < other.at for one, other in pairwise(faults))


def test_what_ci_runs_has_every_kind_of_fault_but_three():
    found = re.search(r"chaos --minutes ([\d.]+) --seed (\d+)", CI.read_text())
    assert found is not None
    seconds = 60 * float(found[1])
    faults = schedule(int(found[2]), seconds)
    assert {one.kind for one in faults if one.at + one.seconds < seconds} == set(KINDS) - NOT_IN_CI


def test_the_calls_are_always_the_same_and_of_every_sort():
    wanted = calls("demo")
    assert wanted == calls("demo")
    bodies = [call.body for call in wanted]
    assert {body["temperature"] for body in bodies} == {0, 1.0}
    assert all(any(name in body for body in bodies) for name in ("n", "stop", "logprobs", "seed", "messages"))


def test_an_answer_is_right_if_every_token_is():
    assert difference(answer("abc"), answer("abc"), whole=True) is None
    assert difference(answer("ab", finish=None), answer("abc"), whole=False) is None


def test_a_lost_a_repeated_and_another_token_are_found():
    told = answer("abcd", ["a", "b", "cd"])
    lost = difference(answer("acd", ["a", "cd"]), told, whole=True)
    assert lost == Difference(
        1, 0, "2 instead of 3, the first 1 right; ended by length, wanted length: ...['cd'], wanted ...['b', 'cd']"
    )
    repeated = difference(answer("abbcd", ["a", "b", "b", "cd"]), told, whole=True)
    assert (repeated.lost, repeated.repeated) == (0, 1) if repeated else False
    assert difference(answer("abX", finish=None), answer("abcd"), whole=False)
    assert difference(answer("abcd", finish="stop"), answer("abcd"), whole=True)
    assert difference(Answer(), answer("abcd"), whole=True)


def test_events_of_both_routes_become_one_answer():
    completions, chat = Answer(), Answer()
    for text, finish in (("a", None), ("b", "stop")):
        logprobs = {"tokens": [text]}
        completions.take({"choices": [{"index": 1, "text": text, "logprobs": logprobs, "finish_reason": finish}]})
        logprobs = {"content": [{"token": text}]}
        delta = {"content": text}
        chat.take({"choices": [{"index": 1, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]})
    assert completions == chat == Answer({1: Choice("ab", ["a", "b"], "stop")})


def test_a_stream_that_stood_still_after_a_fault_is_affected_and_recovers_with_its_next_token():
    stories = [story(0.0, [1.0, 9.9, 14.0, 15.0]), story(0.0, [9.9, 10.3, 15.0]), story(10.5, [11.0, 15.0])]
    (row,) = tally([fault(10.0)], stories)
    assert (row.times, row.affected, row.came_again, row.recovered) == (1, 1, 0, 1)
    assert (row.percentile(0.5), row.percentile(0.99)) == (4.0, 4.0)


def test_who_had_to_connect_anew_is_affected_by_what_explains_it_or_else_by_the_last_fault_before():
    cut, killed = fault(10.0, "connection cut"), fault(20.0, "gateway killed")
    broken = story(0.0, [9.9, 10.5, 12.0], troubles=[trouble(at=10.1)])
    refused = story(20.5, [22.0], troubles=[trouble(at=20.6)])
    late = story(20.5, [30.2, 32.0], troubles=[trouble(at=31.0, cause=Outage(killed, "gateway", "killed", 20.0))])
    rows = {row.name: row for row in tally([cut, killed, fault(30.0)], [broken, refused, late])}
    assert (rows["connection cut"].affected, rows["connection cut"].seconds) == (1, [0.5])
    assert (rows["gateway killed"].affected, rows["gateway killed"].came_again) == (2, 2)
    assert rows["decode killed"].affected == 0


def trouble(at: float, stage: Stage = "broken", cause: Outage | None = None) -> Trouble:
    return Trouble("gateway", at - 1.0, at, stage, "said", cause=cause)


def excuse(stage: Stage, *outages: tuple[str, How]) -> str | None:
    """What excuses a try that lasted from 19 to 20 s, if all this was out from 10 s until well after it."""
    found = trouble(20.0, stage)
    judge([found], [Outage(fault(10.0), part, how, 10.0, 60.0) for part, how in outages], ROLES)
    return found.cause.name if found.cause else None


@pytest.mark.parametrize("how", ["stopped", "hung", "cut", "restarted"])
def test_a_stream_that_has_begun_may_break_by_its_gateways_death_alone(how: How):
    assert excuse("broken", ("gateway", "killed")) == "gateway killed"
    assert excuse("broken", ("gateway", how), ("gateway 2", "killed"), ("decode 1", "killed")) is None


def test_a_gateway_that_drains_may_take_no_more_calls():
    assert excuse("unanswered", ("gateway", "restarted")) == "gateway restarted"
    assert excuse("unanswered", ("gateway 2", "restarted"), ("gateway", "stopped")) is None


def test_a_refusal_is_excused_while_a_whole_role_or_the_bus_is_away():
    assert excuse("refused", ("decode 1", "killed")) is None
    assert excuse("refused", ("decode 1", "killed"), ("decode 2", "stopped")) == "decode 1 killed"
    assert excuse("refused", ("nats", "stopped")) == "nats stopped"
    assert excuse("refused", ("gateway", "hung")) == "gateway hung"
    assert excuse("refused", ("gateway 2", "hung"), ("all", "disk full"), ("nats", "cut")) is None


def test_a_crowd_excuses_that_there_is_no_room_and_nothing_else():
    crowd = Outage(fault(10.0, "three times the clients", 10.0), "all", "overloaded", 10.0, 25.0)
    full, away = trouble(20.0, "refused"), trouble(20.0, "refused")
    full.what, away.what = "429: The queue is full", "503: Nobody is there"
    judge([full, away], [crowd], ROLES)
    assert (full.cause, away.cause) == (crowd, None)


def test_two_of_a_role_that_were_away_one_after_the_other_excuse_no_refusal():
    found = trouble(20.0, "refused")
    one, other = (fault(at, "decode killed") for at in (10.0, 19.8))
    judge([found], [Outage(one, "decode 1", "killed", 10.0, 17.5), Outage(other, "decode 2", "killed", 19.8)], ROLES)
    assert found.cause is None
    assert found.around == ["decode 1 killed", "decode 2 killed"]


def test_what_was_over_before_excuses_nothing():
    found = trouble(20.0)
    over = Outage(fault(1.0), "gateway", "killed", 1.0, 20.0 - GRACE_SECONDS - 0.1)
    judge([found], [over], ROLES)
    assert found.cause is None


def test_a_stream_that_stood_still_already_is_the_affair_of_the_fault_before():
    stopped, killed = fault(10.0, "nats killed", 10.0), fault(21.0)
    rows = tally([stopped, killed], [story(0.0, [9.9, 25.0])])
    assert [(row.name, row.affected, row.seconds) for row in rows] == [
        ("decode killed", 0, []),
        ("nats killed 10 s", 1, []),
    ]


def test_who_left_is_not_affected_and_who_got_a_wrong_answer_has_not_recovered():
    left = story(0.0, [9.0, 30.0], left=True)
    wrong = story(0.0, [9.5, 13.0], wrong="it is", lost=2, repeated=1)
    (row,) = tally([fault(10.0)], [left, wrong])
    assert (row.affected, row.recovered, row.lost, row.repeated) == (1, 0, 2, 1)
