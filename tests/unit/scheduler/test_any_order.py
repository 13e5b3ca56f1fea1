import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.dispatcher import Dispatcher, Snapshot
from services.scheduler.plain import read_as, to_json
from tests.unit.scheduler.chaos import Chaos

ORDINARY = (
    "submit",
    "submit",
    "submit",
    "get_on",
    "get_on",
    "take_one",
    "finish",
    "beat",
    "wait",
    "submit_interrupted",
)
FAULTS = (
    *("submit_twice", "submit_next_attempt", "submit_stale_attempt", "abort", "lose_gateway", "refuse_one"),
    *("say_computed_twice", "lose_lease", "die", "change", "sleep", "depose"),
)
anything = st.lists(st.tuples(st.sampled_from(3 * ORDINARY + FAULTS), st.integers(0, 9999)), min_size=30, max_size=100)


@settings(max_examples=60, deadline=None)
@given(anything)
def test_any_order_of_events_ends_every_request_once_and_leaves_nothing_behind(happenings: list[tuple[str, int]]):
    chaos = Chaos()
    for name, n in happenings:
        getattr(chaos, name)(n)
        chaos.check_places()
    chaos.bring_to_an_end()
    unfinished = [request for request, client in chaos.clients.items() if not client.over]
    assert not unfinished, "nobody will ever finish these"
    assert chaos.world.is_empty
    assert not any(chaos.open_attempts.values())


@settings(max_examples=30, deadline=None)
@given(anything, st.integers(0, 100))
def test_a_dispatcher_restored_at_any_moment_decides_as_the_one_before(happenings: list[tuple[str, int]], at: int):
    chaos = Chaos()
    picture = ""
    for index, (name, n) in enumerate(happenings):
        if index == at % len(happenings):
            picture = to_json(chaos.world.dispatcher.snapshot())
            chaos.history.clear()
        getattr(chaos, name)(n)
    restored = Dispatcher.restore(read_as(Snapshot, json.loads(picture)))
    for event, effects in chaos.history:
        assert restored.step(event) == effects
    assert restored.snapshot() == chaos.world.dispatcher.snapshot()
