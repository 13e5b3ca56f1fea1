"""Does to the stack what the schedule says."""

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from cli.chaos.load import Load
from cli.chaos.outages import How, Outage
from cli.chaos.proxy import Proxy
from cli.chaos.schedule import Fault
from cli.chaos.stack import FixedRestarts, TormentedStack, until_restarted
from cli.keeper import Keeper
from cli.restarts import Restarts

RESTART_SECONDS = 30.0  # for one part to be there again
PAUSE_SECONDS = 1.5  # between two parts that are restarted in turn
LEAVING_CLIENTS = SLOW_CLIENTS = 4
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
            "clients read slowly": self._read_slowly,
            "three times the clients": self._overload,
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
            await asyncio.wait([self._terminate(fault, keeper)], timeout=self._drain_seconds + RESTART_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
        return "all in turn"

    def _kill(self, fault: Fault, keeper: Keeper) -> None:
        self._watch(fault, keeper, "killed")
        keeper.process.kill()

    def _terminate(self, fault: Fault, keeper: Keeper) -> asyncio.Task[None]:
        """Once: a process that is told a second time to end does so at once, and breaks what it serves."""
        watching = self._watch(fault, keeper, "restarted")
        if keeper.process.pid not in self._told_to_end:
            self._told_to_end.add(keeper.process.pid)
            keeper.process.terminate()
        return watching

    def _watch(self, fault: Fault, keeper: Keeper, how: How) -> asyncio.Task[None]:
        """Note when another process has taken its place; done then."""
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
        return watching

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

    async def _read_slowly(self, fault: Fault) -> str:
        """A byte a second for a while; then they take the rest, which has to be there."""
        keepers = self._stack.keepers_of("gateway")
        part = keepers[fault.pick % len(keepers)].part
        proxy = await Proxy.start(self._stack.port_of(part))
        proxy.crawl()
        asking = asyncio.create_task(self._load.through(part.name, f"http://127.0.0.1:{proxy.port}", SLOW_CLIENTS))
        await asyncio.sleep(fault.seconds)
        proxy.flow()
        await asking
        await proxy.close()
        return f"{SLOW_CLIENTS} clients of {part.name}"

    async def _overload(self, fault: Fault) -> str:
        count = 2 * self._load.streams
        with self._outage(fault, "all", "overloaded"):
            await self._load.more(count, fault.seconds)
        return f"{count} clients more"

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
