import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from shared.engine.pieces import Drawn, Piece
from shared.engine.step import Engine
from shared.engine.thread import EngineThread, StepHung
from shared.specs.settings import BadSetting
from tests.generation import GREEDY, begin, generate


class HeldEngine:
    """Stands in for an engine whose steps last until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.threads: set[str] = set()
        self.steps = 0

    def use_threads(self) -> None:
        self.threads.add(threading.current_thread().name)

    def step(self, pieces: Sequence[Piece]) -> list[Drawn | None]:
        self.threads.add(threading.current_thread().name)
        assert self.go.wait(10)
        self.steps += 1
        if not pieces:
            raise ValueError("no pieces")
        return [Drawn(piece.tokens[0], None) for piece in pieces]


PIECE = Piece([7], 0, [0], None)


@pytest.fixture
def engine() -> HeldEngine:
    return HeldEngine()


@pytest.fixture
async def thread(engine: HeldEngine) -> AsyncIterator[EngineThread]:
    thread = EngineThread(cast("Engine", engine))
    yield thread
    engine.go.set()
    await thread.close()


async def test_the_loop_runs_on_while_a_step_is_computed(engine: HeldEngine, thread: EngineThread):
    step = asyncio.create_task(thread.step([PIECE]))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not step.done()
    engine.go.set()
    assert await step == [Drawn(7, None)]
    assert engine.threads == {"engine"}
    assert thread.step_seconds > 0


async def test_an_exception_of_a_step_comes_to_its_caller_and_the_next_step_works(
    engine: HeldEngine, thread: EngineThread
):
    engine.go.set()
    with pytest.raises(ValueError, match="no pieces"):
        await thread.step([])
    assert await thread.step([PIECE]) == [Drawn(7, None)]


async def test_a_cancelled_call_leaves_its_step_to_end_before_the_next(engine: HeldEngine, thread: EngineThread):
    first = asyncio.create_task(thread.step([PIECE]))
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(thread.step([PIECE]))
    await asyncio.sleep(0)
    engine.go.set()
    assert await second == [Drawn(7, None)]
    assert first.cancelled()
    assert engine.steps == 2


async def test_closing_waits_for_the_step_but_not_for_ever(engine: HeldEngine, thread: EngineThread):
    step = asyncio.create_task(thread.step([PIECE]))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="did not end within"):
        await thread.close(timeout_seconds=0.05)
    engine.go.set()
    await thread.close()
    assert await step == [Drawn(7, None)]


async def test_a_step_that_does_not_end_in_time_is_given_up_and_closing_does_not_wait_for_it(engine: HeldEngine):
    thread = EngineThread(cast("Engine", engine), limit_seconds=0.05)
    with pytest.raises(StepHung, match="did not end within"):
        await thread.step([PIECE])
    await thread.close()
    engine.go.set()


async def test_a_real_engine_gives_the_same_tokens_on_its_thread(load_engine):
    engine = load_engine("llama")
    thread = EngineThread(engine)
    [generation] = begin(engine, [[7, 8, 9]], [GREEDY], 5)
    for _ in range(5):
        piece = generation.piece(100)
        [drawn] = await thread.step([piece])
        generation.record(piece, drawn)
    await thread.close()
    assert [generation.generated] == generate(engine, [[7, 8, 9]], 5)


async def test_only_the_computing_thread_is_pinned(load_engine):
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    others = set(threading.enumerate())
    thread = EngineThread(load_engine("llama", cores=(core,)))
    await thread.step([Piece([7], 0, [0], None)])
    (computing,) = [one for one in threading.enumerate() if one.name == "engine" and one not in others]
    assert computing.native_id is not None
    assert os.sched_getaffinity(computing.native_id) == {core}
    assert os.sched_getaffinity(0) == allowed
    await thread.close()


def test_cores_that_this_machine_does_not_have_are_an_error(load_engine):
    with pytest.raises(BadSetting, match="may use"):
        load_engine("llama", cores=(4096,))
