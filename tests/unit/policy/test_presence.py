from shared.policy.presence import DEAF_SECONDS, Echo, Presence
from shared.specs.ids import InstanceId


def test_a_silent_instance_is_reported_lost_once():
    presence = Presence(limit_seconds=3.0)
    presence.heard(InstanceId("decode-1"), now=0.0)
    presence.heard(InstanceId("decode-2"), now=2.0)
    assert presence.lost(now=3.0) == []
    assert presence.lost(now=3.5) == ["decode-1"]
    assert presence.lost(now=3.6) == []


def test_an_instance_that_speaks_again_is_back():
    presence = Presence(limit_seconds=3.0)
    presence.heard(InstanceId("decode-1"), now=0.0)
    presence.lost(now=9.0)
    presence.heard(InstanceId("decode-1"), now=10.0)
    assert presence.lost(now=14.0) == ["decode-1"]


def test_what_others_say_of_an_instance_does_not_keep_it_alive():
    """A dead gateway's requests go on being started while they are handed over."""
    presence = Presence(limit_seconds=3.0)
    presence.expect(InstanceId("gateway-1"), now=0.0)
    presence.expect(InstanceId("gateway-1"), now=2.0)
    assert presence.lost(now=3.1) == ["gateway-1"]


def test_after_a_time_in_which_nobody_could_be_heard_everybody_has_the_whole_limit_again():
    presence = Presence(limit_seconds=3.0)
    presence.heard(InstanceId("decode-1"), now=0.0)
    presence.pardon(now=10.0)
    assert presence.lost(now=12.9) == []
    assert presence.lost(now=13.1) == ["decode-1"]


def test_who_does_not_hear_its_own_beats_is_deaf_until_one_comes_back():
    echo = Echo()
    assert not echo.deaf(100.0)
    assert not echo.heard(100.0)
    assert not echo.deaf(99.9 + DEAF_SECONDS)
    assert echo.deaf(100.1 + DEAF_SECONDS)
    assert echo.heard(103.0)
    assert not echo.deaf(103.0)
