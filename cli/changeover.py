"""From the instances that run to those that a plan wants, without a moment in which a role has none. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

EngineRole = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Engine:
    """A running instance of the stack."""

    role: EngineRole
    number: int  # of the role: "decode 2"
    gpu: str = ""  # that it sees; empty on a CPU

    @property
    def name(self) -> str:
        return f"{self.role} {self.number}"


@dataclass(frozen=True, slots=True)
class Start:
    """And go on when it is ready."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class Stop:
    """It drains: what it works on ends there, or goes on elsewhere. Go on when it is gone."""

    engine: Engine


def changeover(engines: Sequence[Engine], prefill: int, decode: int, gpus: Sequence[str]) -> list[Start | Stop]:
    """The steps, in order. A change of role is a new instance of the other role in place of an old one.

    The new one is started before the old one goes, except where each GPU is some instance's own: its memory is full
    until that one has gone. Then the old one goes first, and never the last one of its role. The newest go first.
    """
    running = list(engines)
    wanted: dict[EngineRole, int] = {"prefill": prefill, "decode": decode}
    leaving: list[Engine] = []
    coming: list[EngineRole] = []
    for role in wanted:
        mine = sorted((one for one in running if one.role == role), key=lambda one: one.number)
        leaving += reversed(mine[wanted[role] :])
        coming.extend(repeat(role, max(0, wanted[role] - len(mine))))
    steps: list[Start | Stop] = []
    while coming or leaving:
        old = leaving.pop(0) if leaving else None
        if not coming:
            assert old is not None
            steps.append(Stop(old))
            continue
        role = coming.pop(0)
        gpu = _place(running, old, gpus)
        number = 1 + max((engine.number for engine in running if engine.role == role), default=0)
        new = Engine(role, number, gpu)
        occupied = bool(gpu) and any(engine.gpu == gpu for engine in running)
        last_of_role = old is not None and sum(engine.role == old.role for engine in running) == 1
        pair: list[Start | Stop] = [Start(new)] if old is None else [Start(new), Stop(old)]
        steps += reversed(pair) if occupied and not last_of_role else pair
        running = [engine for engine in running if engine != old] + [new]
    return steps


def _place(running: Sequence[Engine], old: Engine | None, gpus: Sequence[str]) -> str:
    """A GPU that nobody has; else the one that `old` leaves; else the one with the fewest instances."""
    count = {gpu: sum(engine.gpu == gpu for engine in running) for gpu in gpus}
    if not count:
        return ""
    emptiest = min(gpus, key=lambda gpu: count[gpu])
    return old.gpu if old is not None and count[emptiest] else emptiest
