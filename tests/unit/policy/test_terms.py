"""Whose commands an instance obeys."""

from shared.messages.instances import Beat
from shared.policy.terms import Terms
from shared.specs.ids import InstanceId

FIRST, SECOND = InstanceId("scheduler-00000001"), InstanceId("scheduler-00000002")


def leads(scheduler: InstanceId, term: int) -> Beat:
    return Beat(instance=scheduler, role="scheduler", number=1, term=term)


def test_a_leader_is_not_obeyed_any_more_once_a_later_one_was_heard():
    terms = Terms()
    assert terms.heard(leads(FIRST, 16))
    assert terms.admits(16)
    assert terms.heard(leads(SECOND, 32))
    assert not terms.admits(16)
    assert terms.admits(32)


def test_a_leader_that_goes_on_in_a_later_term_is_the_same_one():
    terms = Terms()
    assert terms.heard(leads(FIRST, 16))
    assert not terms.heard(leads(FIRST, 17))
    assert not terms.admits(16)


def test_only_schedulers_are_heard_and_commands():
    terms = Terms()
    assert not terms.heard(Beat(instance=InstanceId("decode-00000001"), role="decode", number=1, term=99))
    assert terms.admits(1)
    assert not terms.heard(leads(FIRST, 0))
