from shared.policy.step_failures import StepFailures
from shared.specs.ids import RequestId

A, B, C = (RequestId(name) for name in "abc")


def test_steps_of_different_requests_that_fail_are_counted():
    failures = StepFailures()
    for request in (A, B, C):
        failures.failed([request])
    assert failures.in_a_row == 3


def test_a_request_that_fails_again_and_again_is_counted_once():
    failures = StepFailures()
    for others in ([], [B], [C], []):
        failures.failed([A, *others])
    assert failures.in_a_row == 1


def test_a_step_that_succeeds_ends_the_row():
    failures = StepFailures()
    failures.failed([A])
    failures.succeeded()
    failures.failed([A])
    assert failures.in_a_row == 1
