import hashlib

import pytest

from services.gateway.keys import Holder, KeyLimits, KeyRing

NO_LIMITS = KeyLimits()
HASHED = f"sha256:{hashlib.sha256(b'second').hexdigest()}"


@pytest.mark.parametrize("given", ["Bearer first", "bearer  first ", "Bearer second"])
def test_a_key_opens_whether_it_was_given_in_clear_or_hashed(given: str) -> None:
    assert KeyRing(["first", HASHED], NO_LIMITS).holder(given) is not None


@pytest.mark.parametrize(
    "given", ["", "first", "Basic first", "Bearer", "Bearer third", f"Bearer {HASHED}", "Bearer é"]
)
def test_nothing_else_does(given: str) -> None:
    assert KeyRing(["first", HASHED], NO_LIMITS).holder(given) is None


def test_without_keys_everybody_is_the_same_holder() -> None:
    ring = KeyRing([], NO_LIMITS)
    assert ring.holder("") is ring.holder("Bearer any") is not None


def test_each_key_has_limits_of_its_own() -> None:
    ring = KeyRing(["first", HASHED], KeyLimits(at_once=1))
    first, second = ring.holder("Bearer first"), ring.holder("Bearer second")
    assert first is not None
    assert second is not None
    assert first.begin(0.0) == second.begin(0.0) == 0.0
    assert first.begin(0.0) > 0
    first.end()
    assert first.begin(0.0) == 0.0


def test_a_call_of_several_requests_takes_as_many_or_none() -> None:
    holder = Holder(KeyLimits(at_once=5, per_minute=6))
    assert holder.begin(0.0, 4) == 0.0
    assert holder.begin(0.0, 2) > 0
    holder.end(4)
    assert holder.begin(0.0, 3) == pytest.approx(10.0)  # of the minute's six, two are left
    assert holder.running == 0
    assert holder.limits.most == 5


def test_requests_in_a_minute_are_limited_and_come_back_evenly() -> None:
    holder = Holder(KeyLimits(per_minute=6))
    assert [holder.begin(100.0) for _ in range(6)] == [0.0] * 6
    assert holder.begin(100.0) == pytest.approx(10.0)
    assert holder.begin(105.0) == pytest.approx(5.0)
    assert holder.begin(110.5) == 0.0
    assert holder.running == 7
