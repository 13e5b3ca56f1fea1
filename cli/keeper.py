"""Keeps one part running until it is stopped."""

import asyncio
from collections.abc import Awaitable, Callable

from cli.part_process import PartProcess
from cli.restarts import GiveUp, RestartAfter, Restarts
from cli.stack import Part


class Keeper:
    """`start` once, then `run` as a task; `stop` at the end, whatever became of the task.

    `on_death` is told of every end that nobody asked for, and what follows; after GiveUp nothing more is started.
    """

    def __init__(
        self,
        part: Part,
        start: Callable[[Part], Awaitable[PartProcess]],
        on_death: Callable[["Keeper", int, RestartAfter | GiveUp], None],
        was_ever_served: Callable[[], bool],
    ) -> None:
        self.part = part  # may be replaced: the next start uses it
        self._start = start
        self._on_death = on_death
        self._was_ever_served = was_ever_served
        self.restarts = Restarts()  # may be replaced too
        self._process: PartProcess | None = None
        self._stopping = asyncio.Event()
        self._changing = asyncio.Lock()  # no start between the decision to stop and the stop

    @property
    def process(self) -> PartProcess:
        assert self._process is not None, f"{self.part.name} was never started"
        return self._process

    async def start(self) -> None:
        async with self._changing:
            if not self._stopping.is_set():
                self._process = await self._start(self.part)

    async def run(self) -> None:
        while not self._stopping.is_set():
            status = await self.process.ended()
            if self._stopping.is_set():
                return
            decision = self.restarts.died(
                status=status, ran_seconds=self.process.ran_seconds, was_ever_served=self._was_ever_served()
            )
            self._on_death(self, status, decision)
            if isinstance(decision, GiveUp):
                return
            try:
                async with asyncio.timeout(decision.seconds):
                    await self._stopping.wait()
            except TimeoutError:
                await self.start()

    async def stop(self, deadline_seconds: float, hurry: asyncio.Event) -> bool:
        """SIGTERM; after the deadline, or once `hurry` is set, SIGKILL: then True. Returns when the process is gone."""
        async with self._changing:
            self._stopping.set()
        if self._process is None or not self._process.running:
            return False
        self._process.terminate()
        ended = asyncio.create_task(self._process.ended())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        had_to_be_killed = not ended.done()
        if had_to_be_killed:
            self._process.kill()
        await ended
        return had_to_be_killed
