"""Who names a time for the first token is refused at once if it would come later. No clock but the test's."""

import heapq
import random

import pytest
from msgspec.structs import replace

from services.scheduler.events import Accept, Refuse, SendPrefill
from services.scheduler.limits import Limits
from tests.unit.scheduler.world import P1, World, of, submitted

TARGET = 1.0
TOKENS_PER_SECOND = 1000.0
MOST_TOKENS = 200
MEAN_TOKENS = MOST_TOKENS / 2


def submit_within(world: World, request: str, seconds: float, tokens: int = 100):
    return world.feed(replace(submitted(world.now, request, tokens=tokens), within_seconds=seconds))


def compute(world: World, request: str, seconds: float, tokens: int = 100) -> None:
    world.answer("prefill-1", request, "started")
    world.now += seconds
    world.kv_computed(request, tokens=tokens)
    world.end(request)


def measured() -> World:
    """Its prefill instance computes 1000 tokens a second."""
    world = World()
    world.pair()
    for number in range(5):
        world.submit(f"before-{number}")
        compute(world, f"before-{number}", 0.1)
    return world


def test_nobody_is_refused_before_anything_was_measured():
    world = World()
    world.pair()
    world.submit("first", tokens=900)
    assert of(Accept, submit_within(world, "second", 0.001))


def test_an_idle_instance_takes_whatever_comes():
    """Else a measurement that was wrong once would never be put right."""
    world = measured()
    assert of(Accept, submit_within(world, "r", 0.001))


def test_who_would_wait_too_long_is_refused_and_told_when_to_come_back():
    world = measured()
    world.submit("long", tokens=900)  # 0.9 s of work
    (refusal,) = submit_within(world, "r", 0.5)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "too_late"
    assert refusal.message == "its first token would come in 1.0 s, and is wanted within 0.5 s"
    assert refusal.retry_after_seconds == 1.0
    assert of(Accept, submit_within(world, "patient", 2.0))
    assert of(Accept, world.submit("careless"))


def test_what_has_been_computed_meanwhile_counts():
    world = measured()
    world.submit("long", tokens=900)
    assert of(Refuse, submit_within(world, "early", 0.5))
    world.answer("prefill-1", "long", "started")
    world.now += 0.8
    assert of(Accept, submit_within(world, "later", 0.5))


def test_what_waits_here_counts_too():
    world = measured()
    for number in range(8):
        world.submit(f"w{number}", tokens=900)
    (refusal,) = submit_within(world, "r", 5.0)
    assert isinstance(refusal, Refuse)
    assert refusal.message.startswith("its first token would come in 7.3 s")


def test_who_was_running_is_never_too_late():
    world = measured()
    world.submit("long", tokens=900)
    resumed = replace(submitted(world.now, "r", attempt=1, resumed=True), within_seconds=0.01)
    assert of(Accept, world.feed(resumed))


def goodput(load: float, seconds: float, *, by_slo: bool) -> float:
    """Requests a second whose first token came in time. `load`: 1 is what the one prefill instance can compute."""
    chance, world = random.Random(7), World(Limits(queue_requests=1000))
    world.pair()
    rate = load * TOKENS_PER_SECOND / MEAN_TOKENS
    free_at, in_time, count = world.now, 0, 0
    happenings: list[tuple[float, int, str, str, int]] = []
    at, end = world.now, world.now + seconds
    while (at := at + chance.expovariate(rate)) < end:
        happenings.append((at, count, "arrive", f"r{count}", chance.randint(1, MOST_TOKENS)))
        count += 1
    happenings += [(world.now + beat, -1, "beat", "", 0) for beat in range(int(seconds) + 60)]
    heapq.heapify(happenings)
    arrived: dict[str, tuple[float, int]] = {}
    while happenings:
        now, _, what, request, tokens = heapq.heappop(happenings)
        world.now = max(now, world.now)
        if what == "beat":
            world.beat("gateway-1")
            held = [(r, 0) for r in world.dispatcher.board.fleet[P1].held] if arrived else []
            world.beat("prefill-1", requests=held)
            effects = world.beat("decode-1", linked=["prefill-1"])
        elif what == "arrive":
            arrived[request] = (world.now, tokens)
            within = TARGET if by_slo else 0.0
            effects = world.feed(replace(submitted(world.now, request, tokens=tokens), within_seconds=within))
        else:
            in_time += world.now - arrived[request][0] <= TARGET
            effects = world.kv_computed(request, tokens=tokens) + world.end(request)
        for start in of(SendPrefill, effects):
            tokens = arrived[start.request][1]
            free_at = max(free_at, world.now) + tokens / TOKENS_PER_SECOND * chance.uniform(0.6, 1.4)
            effects += world.answer("prefill-1", start.request, "started")
            heapq.heappush(happenings, (free_at, len(arrived), "computed", start.request, tokens))
    return in_time / seconds


@pytest.mark.parametrize("load", [2.0, 3.0, 4.0])
def test_under_overload_goodput_stays_what_it_is_at_capacity(load: float):
    at_capacity = max(goodput(part, 60, by_slo=True) for part in (0.8, 0.9, 1.0))
    assert goodput(load, 60, by_slo=True) >= 0.9 * at_capacity
    assert goodput(load, 60, by_slo=False) < 0.5 * at_capacity, "without it everybody waits for everybody"
