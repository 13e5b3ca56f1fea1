"""The simulator decides what the live system decides: its jumps against steps walked one by one, its dispatcher against
one that is told the same events again."""

import json
from dataclasses import replace
from heapq import heappop
from typing import Any, ClassVar

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import Effect, Event
from services.scheduler.limits import Limits
from services.scheduler.plain import from_tagged, tagged, to_json
from services.scheduler.simulator import world as world_module
from services.scheduler.simulator.decode import DecodeInstance
from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.profile import Coefficients, Overhead
from services.scheduler.simulator.simulation import simulate
from services.scheduler.simulator.workload import Trace, draw
from services.scheduler.simulator.world import World
from shared.messages.instances import Capacity
from shared.specs.ids import InstanceId
from tests.unit.scheduler.simulator.served import setup
from tests.unit.scheduler.simulator.stepwise import Stepwise

TIMES = Coefficients((10.0, 0.1, 0.0), (8.0, 0.01, 0.5), (6.0, 0.01, 0.6), 4)

requests = st.lists(
    st.tuples(st.floats(0, 0.5), st.integers(1, 40), st.integers(1, 60)),  # (gap, context, answer tokens to come)
    min_size=1,
    max_size=25,
)


MOVE_SECONDS = 1e-7


class Source:
    """A prefill instance that has every context."""

    link_free_at = 0.0

    def release(self, request: int, now: float) -> None: ...


class Decoding(World):
    """A decode instance alone: contexts arrive computed, and who is preempted stays away."""

    def __init__(self, arrivals: list[tuple[float, int, int, int]]) -> None:
        times, _, contexts, answers = (list(column) for column in zip(*arrivals, strict=True))
        super().__init__(Trace("t", times, contexts, answers), "m", 0.0, 1e12, 1)
        self.given_up: list[int] = []

    def transfer_seconds(self, tokens: int) -> float:
        return MOVE_SECONDS

    def preempted(self, request: int, now: float) -> None:
        self.given_up.append(request)

    def serve(self, instance: DecodeInstance, arrivals: list[tuple[float, int, int, int]]) -> None:
        source: Any = Source()
        for time, number, _, _ in arrivals:
            self.at(time, lambda now, request: instance.start(request, source, now), number)
        while self._heap:
            now, _, call, what = heappop(self._heap)
            call(now, what)


@settings(max_examples=150, deadline=None)
@given(requests, st.integers(0, 30), st.integers(1, 8), st.sampled_from([1, 4, 16]), st.integers(1, 3))
def test_jumped_steps_end_every_request_when_walked_ones_do(
    rows: list[tuple[float, int, int]], spare: int, max_batch: int, block_tokens: int, pp: int
):
    latency = Latency(TIMES, Overhead(iteration_ms=0.3, context_token_ms=0.001), pp, 0.0001)
    largest = max(-(-(context + answer + 1) // block_tokens) for _, context, answer in rows)
    blocks = largest + max_batch + spare
    arrivals, now = [], 0.0
    for number, (gap, context, answer) in enumerate(rows):
        now += gap
        arrivals.append((now, number, context, answer))
    plain = Stepwise(latency, blocks, block_tokens, max_batch, MOVE_SECONDS)
    plain.run(arrivals)

    world = Decoding(arrivals)
    capacity = Capacity(max_model_tokens=999, block_tokens=block_tokens, blocks=blocks, max_batch=max_batch)
    instance = DecodeInstance(world, InstanceId("decode-0"), latency, capacity, "prefill_priority", 512)
    world.serve(instance, arrivals)
    event(f"preempted: {bool(plain.preempted)}")

    ended = {number: time for number, time in enumerate(world.records.last_at) if time != float("inf")}
    assert ended == pytest.approx(plain.ended, rel=1e-9)
    assert world.given_up == [number for number, _ in plain.preempted]
    assert instance.load(float("inf")).free_blocks == blocks


class Recording(Dispatcher):
    """Notes every event and what was decided on it."""

    log: ClassVar[list[tuple[Event, list[Effect]]]] = []

    def step(self, event: Event) -> list[Effect]:
        effects = super().step(event)
        self.log.append((event, effects))
        return effects


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["2x tp1 + 2x tp1", "1x tp2 + 3x tp1", "3x tp1 colocated"]),
    st.sampled_from(["prefill_priority", "chunked"]),
    st.sampled_from(["chatbot", "code", "fixed:512/64"]),
    st.floats(0.5, 40),
    st.integers(0, 1000),
)
def test_a_live_dispatcher_decides_the_same_on_the_simulators_events(
    placement: str, order: Any, workload: str, rate: float, seed: int
):
    """Told through the journal's form, as events of the live system are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "Dispatcher", Recording)
        Recording.log.clear()
        trace = draw(workload, 100, seed).stretched(1 / rate)
        simulate(setup(placement, order=order, decode_queue_requests=8, max_batch=24), trace)
    live = Dispatcher(Limits(settle_seconds=0.0, queue_seconds=0.0))
    assert len(Recording.log) > 300
    for told, effects in Recording.log:
        again = from_tagged(json.loads(to_json(tagged(told))), Event)
        assert live.step(again) == effects


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["tp1 + tp1", "3x tp1 + 1x tp1", "2x tp1 + 3x tp1", "tp1 colocated", "2x tp1 colocated"]),
    st.floats(0.5, 40),
    st.sampled_from([0.0, 0.02]),
    st.integers(1, 256),
    st.integers(0, 1000),
)
def test_beats_that_are_not_told_would_have_changed_nothing(
    placement: str, rate: float, hop: float, queue_requests: int, seed: int
):
    trace = draw("code", 150, seed, cv=2.0).stretched(1 / rate)
    how = setup(placement, decode_queue_requests=queue_requests, max_batch=24)
    how = replace(how, hop_seconds=hop)
    fewer = simulate(how, trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "_to_be_heard", _everybody)
        all_told = simulate(how, trace)
    assert fewer.ttft.tolist() == all_told.ttft.tolist()
    assert fewer.tpot.tolist() == all_told.tpot.tolist()


def _everybody(self: Any, now: float) -> list[Any]:
    self._beats += 1
    return list(self._instances.values())
