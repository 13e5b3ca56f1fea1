"""The instances with an engine of a running stack, one more or one less."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cli.changeover import Engine
from cli.keeper import Keeper
from cli.problems import Problem
from cli.readiness import Readiness
from cli.stack import GPU, Part, another

READY_SECONDS = 300.0  # for a new instance to read its weights
POLL_SECONDS = 0.05


class KeptEngines:
    def __init__(
        self,
        keepers: Sequence[Keeper],
        readiness: Readiness,
        keep: Callable[[Part], Awaitable[None]],
        drop: Callable[[Keeper], Awaitable[None]],
    ) -> None:
        """`keepers`: of all parts, kept up to date by `keep`, which starts one more, and `drop`, which ends one."""
        self._keepers, self._readiness = keepers, readiness
        self._keep, self._drop = keep, drop

    def running(self) -> list[Engine]:
        return [
            Engine(role, int(keeper.part.name.rpartition(" ")[2]), keeper.part.environment.get(GPU, ""))
            for keeper in self._keepers
            if (role := keeper.part.role) == "prefill" or role == "decode"
        ]

    async def add(self, engine: Engine) -> None:
        """Start it and wait until it is ready. Problem if it is not in time; then it is gone again."""
        like = next(keeper.part for keeper in self._keepers if keeper.part.role == engine.role)
        self._want(engine, +1)
        await self._keep(another(like, engine.name, engine.gpu))
        try:
            async with asyncio.timeout(READY_SECONDS):
                while engine.role in self._readiness.missing():  # noqa: ASYNC110  beats change it
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            await self.remove(engine)
            raise Problem(f"{engine.name} was not ready within {READY_SECONDS:g} s") from None

    async def remove(self, engine: Engine) -> None:
        """Let it drain, and wait until it is gone."""
        (keeper,) = [keeper for keeper in self._keepers if keeper.part.name == engine.name]
        self._want(engine, -1)
        await self._drop(keeper)

    def _want(self, engine: Engine, more: int) -> None:
        count = sum(one.role == engine.role for one in self.running())
        self._readiness.want(engine.role, count + more)
