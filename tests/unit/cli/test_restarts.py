from cli.restarts import STABLE_SECONDS, GiveUp, RestartAfter, Restarts
from shared.specs.settings import MISCONFIGURED


def test_waits_double_from_half_a_second_up_to_ten():
    restarts = Restarts()
    waits = [restarts.died(status=1, ran_seconds=1.0, was_ever_served=True) for _ in range(8)]
    assert waits == [RestartAfter(seconds) for seconds in (0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0)]


def test_a_part_that_dies_again_and_again_before_the_stack_was_ready_is_given_up():
    restarts = Restarts()
    decisions = [restarts.died(status=1, ran_seconds=0.1, was_ever_served=False) for _ in range(3)]
    assert decisions == [RestartAfter(0.5), RestartAfter(1.0), GiveUp(tries=3)]


def test_a_part_is_never_given_up_once_the_stack_was_ready():
    restarts = Restarts()
    decisions = [restarts.died(status=1, ran_seconds=0.1, was_ever_served=True) for _ in range(100)]
    assert all(isinstance(decision, RestartAfter) for decision in decisions)


def test_a_long_run_forgives_earlier_deaths():
    restarts = Restarts()
    for _ in range(4):
        restarts.died(status=1, ran_seconds=0.1, was_ever_served=True)
    assert restarts.died(status=1, ran_seconds=STABLE_SECONDS, was_ever_served=True) == RestartAfter(0.5)
    assert restarts.died(status=1, ran_seconds=0.1, was_ever_served=True) == RestartAfter(1.0)


def test_a_part_that_says_its_configuration_is_wrong_is_given_up_at_once_unless_it_has_worked():
    assert Restarts().died(status=MISCONFIGURED, ran_seconds=2.0, was_ever_served=False) == GiveUp(tries=1)
    assert Restarts().died(status=MISCONFIGURED, ran_seconds=2.0, was_ever_served=True) == RestartAfter(0.5)
