from msgspec.structs import replace

from services.gateway.topology import Topology
from shared.messages.instances import Beat, Capacity, Link
from shared.specs.ids import InstanceId

PREFILL = Beat(
    instance=InstanceId("prefill-1"), role="prefill", number=1, model="m", capacity=Capacity(max_model_tokens=64)
)
DECODE = Beat(
    instance=InstanceId("decode-1"),
    role="decode",
    number=1,
    model="m",
    capacity=Capacity(max_model_tokens=48),
    links=(Link(peer=PREFILL.instance, ok=True),),
)
SCHEDULER = Beat(instance=InstanceId("scheduler-1"), role="scheduler", number=1)


def topology(*beats: Beat) -> Topology:
    topology = Topology("m")
    for beat in beats:
        topology.note(beat, now=0.0)
    return topology


def test_a_scheduler_and_a_tested_pair_can_serve() -> None:
    assert topology(SCHEDULER, PREFILL, DECODE).missing(0.0) == []


def test_a_colocated_instance_can_serve_alone() -> None:
    assert topology(SCHEDULER, replace(DECODE, colocated=True, links=())).missing(0.0) == []


def test_what_is_missing_is_named() -> None:
    assert topology().missing(0.0) == [
        "no scheduler is alive",
        "no prefill instance is ready",
        "no decode instance is ready",
    ]
    untested = replace(DECODE, links=(Link(peer=PREFILL.instance, ok=False),))
    assert "self-test" in topology(SCHEDULER, PREFILL, untested).missing(0.0)[0]


def test_who_loads_drains_or_serves_another_model_does_not_count() -> None:
    for other in (replace(PREFILL, ready=False), replace(PREFILL, draining=True), replace(PREFILL, model="x")):
        assert topology(SCHEDULER, other, DECODE).missing(0.0) == ["no prefill instance is ready"]


def test_three_missed_beats_are_a_loss() -> None:
    everyone = topology(SCHEDULER, PREFILL, DECODE)
    assert everyone.missing(2.9) == []
    assert len(everyone.missing(3.0)) == 3
    assert everyone.holders(3.0) == []


def test_a_beat_that_was_overtaken_changes_nothing() -> None:
    everyone = topology(SCHEDULER, replace(PREFILL, number=5), DECODE)
    everyone.note(replace(PREFILL, number=4, ready=False), now=0.0)
    assert everyone.missing(0.0) == []


def test_a_new_instance_is_noticed_once() -> None:
    everyone = topology()
    assert everyone.note(SCHEDULER, now=0.0)
    assert not everyone.note(replace(SCHEDULER, number=2), now=1.0)


def test_the_window_is_what_every_instance_can_hold() -> None:
    assert topology(SCHEDULER, PREFILL, DECODE).most_tokens(0.0) == 48
    assert topology().most_tokens(0.0) is None


def test_draining_instances_are_asked_about_requests_too() -> None:
    assert topology(SCHEDULER, replace(PREFILL, draining=True), DECODE).holders(0.0) == [
        replace(PREFILL, draining=True),
        DECODE,
    ]
