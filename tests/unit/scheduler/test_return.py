"""A model whose last instance has gone: its requests wait for the next one, for a while."""

import pytest

from services.scheduler.events import Accept, Interrupt, Refuse, SendDecode, SendPrefill
from services.scheduler.limits import Limits
from tests.unit.scheduler.world import World, of

BEATING = {"prefill-1": {}, "decode-1": {"linked": ["prefill-1"]}}


def pass_time(world: World, seconds: float, **draining: bool) -> list[object]:
    """The gateway and the instances named beat on, draining or not; nobody else does."""
    effects: list[object] = []
    for _ in range(round(seconds)):
        for _ in range(4):
            effects += world.tick(0.25)
        world.beat("gateway-1")
        for role, drains in draining.items():
            effects += world.beat(f"{role}-1", draining=drains, **BEATING[f"{role}-1"])
    return effects


@pytest.mark.parametrize(
    ("gone", "left", "links"), [("prefill", "decode", ["prefill-2"]), ("decode", "prefill", ["prefill-1"])]
)
def test_new_requests_wait_for_the_successor_of_the_last_instance_of_a_role_and_go_in_order(
    gone: str, left: str, links: list[str]
):
    world = World()
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    pass_time(world, 1, **{gone: True, left: False})
    assert [one.request for one in of(Accept, world.submit("a"))] == ["a"]
    pass_time(world, 15, **{left: False})
    assert [one.request for one in of(Accept, world.submit("b"))] == ["b"]
    effects = world.beat(f"{gone}-2", linked=links) + world.beat(f"{left}-1", linked=links)
    assert [sent.request for sent in of(SendPrefill, effects)] == ["a", "b"]


def test_requests_wait_for_the_successor_of_a_killed_instance_too():
    world = World()
    world.pair()
    pass_time(world, 10, prefill=False)
    assert [one.request for one in of(Accept, world.submit("r"))] == ["r"]
    assert of(SendPrefill, world.beat("decode-2", linked=["prefill-1"]))


def test_kv_waits_for_the_successor_of_the_last_decode_instance():
    world = World()
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.kv_computed("r")
    for _ in range(30):
        assert not of(Interrupt, world.tick(1.0))
        world.beat("prefill-1", requests=[("r", 0)])
        world.beat("gateway-1")
    (sent,) = of(SendDecode, world.beat("decode-2", linked=["prefill-1"]))
    assert (sent.instance, sent.source) == ("decode-2", "prefill-1")


def test_nobody_waits_longer_than_the_bound_and_then_requests_are_refused_at_once():
    world = World(Limits(return_seconds=20.0))
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    pass_time(world, 4, prefill=False, decode=True)
    world.submit("r")
    assert not of(Interrupt, pass_time(world, 19, prefill=False))
    assert [i.request for i in of(Interrupt, pass_time(world, 5, prefill=False))] == ["r"]
    (refusal,) = world.submit("r", attempt=1)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "no_instance"


def test_the_time_runs_from_the_end_of_the_last_instance_not_from_when_it_begins_to_drain():
    world = World(Limits(return_seconds=20.0))
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    pass_time(world, 60, prefill=False, decode=True)
    assert of(Accept, world.submit("r"))


def test_with_a_bound_of_zero_requests_are_refused_as_soon_as_nobody_serves_them():
    world = World(Limits(return_seconds=0.0))
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    assert of(Refuse, world.submit("r"))


def test_a_full_queue_refuses_also_while_it_waits_for_an_instance():
    world = World(Limits(queue_requests=1))
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    assert of(Accept, world.submit("a"))
    (refusal,) = of(Refuse, world.submit("b"))
    assert refusal.reason == "queue_full"


def test_a_request_too_long_for_the_successors_does_not_hold_up_the_others_for_ever():
    world = World()
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    pass_time(world, 1, prefill=False, decode=True)
    world.submit("long", final=5000)
    world.submit("short")
    effects = pass_time(world, 14, prefill=False, decode=False)
    assert [i.request for i in of(Interrupt, effects)] == ["long"]
    assert [sent.request for sent in of(SendPrefill, effects)] == ["short"]


def test_a_snapshot_remembers_who_was_served():
    world = World()
    world.pair()
    pass_time(world, 1, prefill=False, decode=False)
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.dispatcher = type(world.dispatcher).restore(world.dispatcher.snapshot())
    assert [one.request for one in of(Accept, world.submit("r"))] == ["r"]
