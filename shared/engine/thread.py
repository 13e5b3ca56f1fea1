"""The thread an engine computes on, so that an event loop never waits for a step."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from shared.engine.pieces import Drawn, Piece
from shared.engine.step import Engine

MOST_WAITING_STEPS = 8  # there is one caller, so more than one means that cancelled steps are still being computed
CLOSE_SECONDS = 10.0


class StepHung(Exception):
    """A step has not ended in time. Nobody can end it: the thread, and with it the engine, is lost."""


@dataclass(frozen=True, slots=True)
class Step:
    pieces: Sequence[Piece]
    result: "asyncio.Future[list[Drawn | None]]"
    loop: asyncio.AbstractEventLoop


class EngineThread:
    """Steps are computed one after the other in the order of the calls."""

    def __init__(self, engine: Engine, limit_seconds: float | None = None) -> None:
        """`limit_seconds`: a step that takes longer hangs. None: it may take for ever."""
        self._engine = engine
        self._limit_seconds = limit_seconds
        self._hung = False
        self._steps: queue.Queue[Step | None] = queue.Queue(MOST_WAITING_STEPS)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self.step_seconds = 0.0  # how long the newest finished step took

    async def step(self, pieces: Sequence[Piece]) -> list[Drawn | None]:
        """As Engine.step, whose exceptions come out here. A cancelled call's step is still computed to its end.

        StepHung if it does not end within the limit, waiting for cancelled ones before it included.
        """
        return await self.end(self.begin(pieces))

    def begin(self, pieces: Sequence[Piece]) -> "Step":
        """The first half of `step`: it is being computed from now on. `end` must follow."""
        assert self._thread.is_alive(), "the engine thread is closed"
        loop = asyncio.get_running_loop()
        step = Step(pieces, loop.create_future(), loop)
        self._steps.put_nowait(step)
        return step

    async def end(self, step: "Step") -> list[Drawn | None]:
        """The second half of `step`."""
        deadline = asyncio.timeout(self._limit_seconds)
        try:
            async with deadline:
                return await step.result
        except TimeoutError as error:
            if not deadline.expired():
                raise
            self._hung = True
            message = f"a step for {len(step.pieces)} sequences did not end within {self._limit_seconds:g} s"
            raise StepHung(message) from error

    async def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """End the thread after the steps it has been given, TimeoutError if that takes too long. Not one that hangs."""
        if self._hung:
            return
        with contextlib.suppress(queue.Full):
            self._steps.put_nowait(None)
        await asyncio.to_thread(self._thread.join, timeout_seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine's step did not end within {timeout_seconds} seconds")

    def _run(self) -> None:
        self._engine.use_threads()
        while (step := self._steps.get()) is not None:
            started = time.perf_counter()
            try:
                drawn = self._engine.step(step.pieces)
            except Exception as error:
                _tell(step, error)
            else:
                self.step_seconds = time.perf_counter() - started
                _tell(step, drawn)


def _tell(step: Step, outcome: "list[Drawn | None] | Exception") -> None:
    def settle() -> None:
        if step.result.done():  # cancelled meanwhile
            return
        if isinstance(outcome, Exception):
            step.result.set_exception(outcome)
        else:
            step.result.set_result(outcome)

    with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
        step.loop.call_soon_threadsafe(settle)
