"""Does to the stack what the schedule says."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from cli.chaos.load import Load
from cli.chaos.outages import How, Outage
from cli.chaos.schedule import Fault
from cli.chaos.stack import FixedRestarts, TormentedStack, until_restarted
from cli.keeper import Keeper
from cli.restarts import Restarts

RESTART_SECONDS = 30.0  # for one part to be there again
PAUSE_SECONDS = 1.5  # between two parts that are restarted in turn
LEAVING_CLIENTS = 4
ROLES = ("prefill", "decode", "scheduler", "gateway")


class Faults:
    """`outages`: what they have taken away, and from when to when."""

    def __init__(self, stack: TormentedStack, load: Load, drain_seconds: float) -> None:
        self.outages: list[Outage] = []
        self._stack, self._load, self._drain_seconds = stack, load, drain_seconds
        self._told_to_end: set[int] = set()
        self._watching: set[asyncio.Task[None]] = set()

    async def happen(self, fault: Fault) -> str:
        """Return when it is over; what it befell."""
        who, _, what = fault.kind.rpartition(" ")
        special: dict[str, Callable[[Fault], Awaitable[str]]] = {
            "every decode killed": self._kill_every_decode,
            "nats killed": self._kill_nats,
            "all restarted in turn": self._restart_all,
            "connection cut": self._cut,
            "connection hangs": self._hang,
            "clients leave": self._leave,
            "disk full": self._fill_disk,
        }
        if fault.kind in special:
            return await special[fault.kind](fault)
        keepers = self._stack.keepers_of(who)
        keeper = keepers[fault.pick % len(keepers)]
        if what == "killed":
            self._kill(fault, keeper)
        elif what == "restarted":
            self._terminate(fault, keeper)
        else:
            with self._outage(fault, keeper.part.name, "stopped"):
                await _stop(keeper, fault.seconds)
        return keeper.part.name

    def close(self) -> None:
        for task in self._watching:
            task.cancel()

    async def _kill_every_decode(self, fault: Fault) -> str:
        for keeper in self._stack.keepers_of("decode"):
            self._kill(fault, keeper)
        return "every decode"

    async def _kill_nats(self, fault: Fault) -> str:
        (keeper,) = self._stack.keepers_of("nats")
        former = keeper.process.pid
        keeper.restarts = FixedRestarts(fault.seconds)
        with self._outage(fault, "nats", "killed"):
            keeper.process.kill()
            await until_restarted(keeper, former, fault.seconds + RESTART_SECONDS)
        keeper.restarts = Restarts()
        return "nats"

    async def _restart_all(self, fault: Fault) -> str:
        """A rolling restart: the next one only when the one before is there again."""
        for keeper in [keeper for role in ROLES for keeper in self._stack.keepers_of(role)]:
            former = keeper.process.pid
            self._terminate(fault, keeper)
            await until_restarted(keeper, former, self._drain_seconds + RESTART_SECONDS)
            await self._stack.complete(RESTART_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
        return "all in turn"

    def _kill(self, fault: Fault, keeper: Keeper) -> None:
        self._watch(fault, keeper, "killed")
        keeper.process.kill()

    def _terminate(self, fault: Fault, keeper: Keeper) -> None:
        """Once: a process that is told a second time to end does so at once, and breaks what it serves."""
        self._watch(fault, keeper, "restarted")
        if keeper.process.pid not in self._told_to_end:
            self._told_to_end.add(keeper.process.pid)
            keeper.process.terminate()

    def _watch(self, fault: Fault, keeper: Keeper, how: How) -> None:
        """Note when another process has taken its place."""
        former, known = keeper.process.pid, self._stack.known()
        outage = self._begin(fault, keeper.part.name, how)

        async def until_back() -> None:
            while not await until_restarted(keeper, former, RESTART_SECONDS):
                pass
            await self._stack.until_back(keeper.part, known)
            outage.ended_at = self._load.now

        watching = asyncio.create_task(until_back())
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    def _begin(self, fault: Fault, part: str, how: How) -> Outage:
        outage = Outage(fault, part, how, self._load.now)
        self.outages.append(outage)
        return outage

    @contextmanager
    def _outage(self, fault: Fault, part: str, how: How) -> Iterator[None]:
        outage = self._begin(fault, part, how)
        yield
        outage.ended_at = self._load.now

    def _one(self, fault: Fault) -> str:
        names = sorted(self._stack.proxies)
        return names[fault.pick % len(names)]

    async def _cut(self, fault: Fault) -> str:
        with self._outage(fault, self._one(fault), "cut"):
            self._stack.proxies[self._one(fault)].cut()
        return self._one(fault)

    async def _hang(self, fault: Fault) -> str:
        proxy = self._stack.proxies[self._one(fault)]
        with self._outage(fault, self._one(fault), "hung"):
            proxy.hang()
            await asyncio.sleep(fault.seconds)
            proxy.flow()
        return self._one(fault)

    async def _leave(self, fault: Fault) -> str:
        return f"{self._load.leave(LEAVING_CLIENTS, fault.pick)} clients"

    async def _fill_disk(self, fault: Fault) -> str:
        """No file of a service may grow any more: every write is refused as by a full disk."""
        pids = [keeper.process.pid for role in ROLES for keeper in self._stack.keepers_of(role)]
        with self._outage(fault, "all", "disk full"):
            for pid in pids:
                _limit_files(pid, 0)
            await asyncio.sleep(fault.seconds)
            for pid in pids:
                _limit_files(pid, resource.RLIM_INFINITY)
        return "all services"


async def _stop(keeper: Keeper, seconds: float) -> None:
    pid = keeper.process.pid
    _signal(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        if keeper.process.pid == pid and keeper.process.running:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it died meanwhile, of another fault
        os.kill(pid, number)


def _limit_files(pid: int, most_bytes: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most_bytes, hard))
