import pytest
from msgspec.structs import replace

from cli.readiness import SILENT_SECONDS, BecameReady, LinkTested, NotReady, Readiness, Silent
from shared.messages.instances import Beat, Link
from shared.specs.ids import InstanceId

PREFILL = Beat(instance=InstanceId("prefill-1"), role="prefill", number=1)
DECODE = Beat(instance=InstanceId("decode-1"), role="decode", number=1)
OTHER_DECODE = replace(DECODE, instance=InstanceId("decode-2"))


@pytest.fixture
def readiness() -> Readiness:
    return Readiness({"prefill": 1, "decode": 2})


def later(beat: Beat, **changes: object) -> Beat:
    return replace(beat, number=beat.number + 1, **changes)


def test_each_instance_is_announced_once_with_its_place_in_the_count(readiness: Readiness):
    assert readiness.heard(DECODE, 0.0) == [BecameReady("decode", DECODE.instance, 1, 2)]
    assert readiness.heard(later(DECODE), 1.0) == []
    assert readiness.heard(OTHER_DECODE, 1.0) == [BecameReady("decode", OTHER_DECODE.instance, 2, 2)]


def test_what_is_missing_shrinks_as_instances_become_ready(readiness: Readiness):
    assert readiness.missing() == {"prefill": 1, "decode": 2}
    readiness.heard(DECODE, 0.0)
    readiness.heard(replace(PREFILL, ready=False), 0.0)
    assert readiness.missing() == {"prefill": 1, "decode": 1}
    readiness.heard(OTHER_DECODE, 0.0)
    readiness.heard(later(PREFILL), 0.0)
    assert readiness.missing() == {}


def test_an_instance_that_takes_itself_out_says_why_once_and_is_announced_when_it_is_back(readiness: Readiness):
    readiness.heard(PREFILL, 0.0)
    broken = later(PREFILL, ready=False, detail="the last 3 steps failed")
    assert readiness.heard(broken, 1.0) == [NotReady(PREFILL.instance, "the last 3 steps failed")]
    assert readiness.heard(later(broken), 2.0) == []
    assert readiness.missing() == {"prefill": 1, "decode": 2}
    assert readiness.heard(later(later(broken), ready=True), 3.0) == [BecameReady("prefill", PREFILL.instance, 1, 1)]


def test_a_beat_overtaken_by_a_later_one_changes_nothing(readiness: Readiness):
    readiness.heard(replace(PREFILL, number=5), 0.0)
    assert readiness.heard(replace(PREFILL, number=4, ready=False, detail="old"), 0.1) == []
    assert "prefill" not in readiness.missing()


def test_an_instance_that_falls_silent_is_missing_and_told_once(readiness: Readiness):
    readiness.heard(PREFILL, 0.0)
    assert readiness.sweep(SILENT_SECONDS - 0.1) == []
    assert readiness.sweep(SILENT_SECONDS) == [Silent(PREFILL.instance)]
    assert readiness.sweep(SILENT_SECONDS + 1) == []
    assert readiness.missing()["prefill"] == 1


def test_a_link_is_told_when_it_was_tested_and_when_its_verdict_changes_but_not_for_another_speed(readiness: Readiness):
    failed = Link(peer=PREFILL.instance, ok=False, detail="timed out")
    good = Link(peer=PREFILL.instance, ok=True, transport="cma", gigabytes_per_second=5.0)
    beat = replace(DECODE, links=(failed,))
    assert LinkTested(DECODE.instance, failed) in readiness.heard(beat, 0.0)
    assert readiness.heard(later(beat), 1.0) == []
    beat = later(later(beat), links=(good,))
    assert readiness.heard(beat, 2.0) == [LinkTested(DECODE.instance, good)]
    assert readiness.heard(later(beat, links=(replace(good, gigabytes_per_second=4.0),)), 3.0) == []


def test_who_was_asked_to_go_is_neither_counted_nor_missed(readiness: Readiness):
    for beat in (DECODE, OTHER_DECODE):
        readiness.heard(beat, 0.0)
    readiness.want("decode", 1)
    readiness.heard(later(DECODE, draining=True), 1.0)
    readiness.heard(later(OTHER_DECODE), 1.0)
    assert readiness.missing() == {"prefill": 1}
    readiness.heard(later(later(OTHER_DECODE)), 5.0)
    assert readiness.sweep(1.0 + SILENT_SECONDS) == []
    assert readiness.sweep(5.0 + SILENT_SECONDS) == [Silent(OTHER_DECODE.instance)]


def test_one_more_is_missing_until_it_is_ready(readiness: Readiness):
    readiness.heard(PREFILL, 0.0)
    readiness.want("prefill", 2)
    assert readiness.missing()["prefill"] == 1
    readiness.heard(replace(PREFILL, instance=InstanceId("prefill-2")), 1.0)
    assert "prefill" not in readiness.missing()
