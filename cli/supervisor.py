"""Runs a stack on this machine: starts the parts, tells when they are ready, keeps them running, stops them in turn."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from cli.held_ports import hold_port, number_of
from cli.keeper import Keeper
from cli.kept_engines import KeptEngines
from cli.keys import make_keys, seed_file
from cli.metrics_ports import with_metrics_ports, write_targets
from cli.nats_server import learn_port, nats_part
from cli.part_process import PartProcess
from cli.plan_follower import PlanFollower
from cli.problems import Problem
from cli.readiness import Readiness
from cli.restarts import GiveUp, RestartAfter
from cli.run_folder import TRAFFIC, RunFolder, Running
from cli.screen import Screen
from cli.stack import Part, Stack, parts
from shared.bus.interface import Bus, BusError
from shared.bus.key_value import Bucket
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from shared.messages.plans import Plan

STOP_ORDER = ("gateway", "decode", "prefill", "scheduler", "nats")
STOP_MARGIN_SECONDS = 5.0  # on top of the time that running answers are given
POLL_SECONDS = 0.05
SWEEP_SECONDS = 0.5
REMIND_SECONDS = 20.0
SHOWN_LINES = 12


class Supervisor:
    def __init__(
        self, stack: Stack, *, root: Path, folder: RunFolder, screen: Screen, gpus: Sequence[str], chats: bool
    ) -> None:
        self._stack, self._root, self._folder, self._screen = stack, root, folder, screen
        self._gpus = gpus
        self._chats = chats
        self._readiness = Readiness(stack.wanted)
        self._ports = ExitStack()
        self._keepers: list[Keeper] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._was_served = False
        self.served = asyncio.Event()  # once: whatever becomes of it later
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._given_up: Problem | None = None

    async def run(self) -> bool:
        """Until a signal comes; True if every part then ended when asked. Problem if the stack cannot start."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                url = await self._start_parts()
                self._tasks = [tasks.create_task(keeper.run()) for keeper in self._keepers]
                self._tasks.append(tasks.create_task(self._watch(url, tasks)))
                await self._stop.wait()
                for task in self._tasks:
                    task.cancel()
        except* Problem as group:
            self._given_up = next(error for error in group.exceptions if isinstance(error, Problem))
        finally:
            ended_when_asked = await self._stop_parts()
            self._ports.close()
        if self._given_up is not None:
            raise self._given_up
        return ended_when_asked

    @property
    def keepers(self) -> Sequence[Keeper]:
        return self._keepers

    def stop(self) -> None:
        """As a signal does."""
        self._on_signal()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        else:
            self._screen.stopping(self._stack.drain_seconds)
            self._stop.set()

    async def _start_parts(self) -> str:
        """Start everything at once, only NATS first; its URL."""
        public_keys = make_keys(self._folder.keys)
        nats = self._keeper(nats_part(self._root, self._folder.nats, self._port(), public_keys))
        await nats.start()
        url = f"nats://127.0.0.1:{await learn_port(nats.process, self._folder.nats)}"
        self._screen.part_ready("nats", url)
        operator = str(seed_file(self._folder.keys, "operator"))
        self._folder.announce(
            Running(gateway_url=self._stack.url, nats_url=url, operator_seed=operator, model=self._stack.model)
        )
        wanted = await self._wanted_parts(url)
        for part in with_metrics_ports(wanted, [self._port() for _ in wanted]):
            await self._keeper(part).start()
        self._write_targets()
        return url

    def _write_targets(self) -> None:
        write_targets([keeper.part for keeper in self._keepers if keeper.part.role != "nats"], self._folder.metrics)

    async def _wanted_parts(self, nats_url: str) -> list[Part]:
        return parts(
            self._stack,
            folders=self._written_folders(),
            nats_url=nats_url,
            seeds={role: str(seed_file(self._folder.keys, role)) for role in self._stack.wanted},
            cores=sorted(os.sched_getaffinity(0)),
            gpus=self._gpus,
        )

    def _written_folders(self) -> Mapping[str, str]:
        """Where services put what they record, unless the person has said."""
        places = {
            "DISTSERVE_JOURNAL_DIR": "journal",
            "DISTSERVE_TRACE_DIR": "traces",
            "DISTSERVE_TRAFFIC_DIR": TRAFFIC,
        }
        return {name: str(self._folder.path / place) for name, place in places.items() if name not in os.environ}

    def _port(self) -> int:
        """On loopback, for one part as long as this runs."""
        return number_of(self._ports.enter_context(hold_port("127.0.0.1", 0)))

    def _keeper(self, part: Part) -> Keeper:
        keeper = Keeper(part, self._start_process, self._on_death, lambda: self._was_served)
        self._keepers.append(keeper)
        return keeper

    async def _start_process(self, part: Part) -> PartProcess:
        try:
            return await PartProcess.start(part, cwd=self._root, logs=self._folder.logs, inherited=os.environ)
        except OSError as error:
            raise Problem(f"{part.name} cannot be started: {error}") from error

    def _on_death(self, keeper: Keeper, status: int, decision: RestartAfter | GiveUp) -> None:
        process, log = keeper.process, self._folder.logs / keeper.part.log_name
        self._screen.died(keeper.part.name, status, process.ran_seconds, decision, process.last_lines(SHOWN_LINES), log)
        if isinstance(decision, GiveUp):
            times = f"{decision.tries} times in a row and is given up" if decision.tries > 1 else "with the error above"
            self._given_up = Problem(f"{keeper.part.name} ended {times}: see {log}")
            self._stop.set()

    async def _watch(self, nats_url: str, tasks: asyncio.TaskGroup) -> None:
        """Listen to the beats, and ask the gateway until it is ready; then follow the plans, if that is wanted."""
        server = BusSettings(url=nats_url, nkey_seed_file=seed_file(self._folder.keys, "operator"))
        try:
            async with await NatsBus.connect(server, name="supervisor", role="operator") as bus:
                await bus.subscribe(Beat.SUBJECT.format(role="*", instance="*"), self._heard, Beat)
                await self._tell_when_ready()
                if self._stack.profile:
                    self._tasks.append(tasks.create_task(self._follow_plans(bus, tasks)))
                while True:
                    await asyncio.sleep(SWEEP_SECONDS)
                    self._tell_who_is_silent()
        except BusError as error:
            raise Problem(str(error)) from error

    async def _follow_plans(self, bus: Bus, tasks: asyncio.TaskGroup) -> None:
        async def keep(part: Part) -> None:
            (part,) = with_metrics_ports([part], [self._port()])
            keeper = self._keeper(part)
            await keeper.start()
            self._tasks.append(tasks.create_task(keeper.run()))
            self._write_targets()

        async def drop(keeper: Keeper) -> None:
            await self._stop_keepers([keeper])
            self._keepers.remove(keeper)
            self._write_targets()

        engines = KeptEngines(self._keepers, self._readiness, keep, drop)
        follower = PlanFollower(engines, self._gpus, self._screen, only_tells=not self._stack.replan)
        await follower.run(bus.key_value(Bucket(Plan.BUCKET), Plan))

    async def _tell_when_ready(self) -> None:
        remind_at = time.monotonic() + REMIND_SECONDS
        async with httpx.AsyncClient(base_url=self._stack.url, timeout=2.0) as gateway:
            while self._readiness.missing() or not await _answers_ready(gateway):
                await asyncio.sleep(POLL_SECONDS)
                self._tell_who_is_silent()
                if time.monotonic() >= remind_at:
                    remind_at += REMIND_SECONDS
                    self._screen.still_missing(", ".join(self._readiness.missing()) or "the gateway to find them ready")
        self._was_served = True
        self.served.set()
        self._screen.serving(self._stack, self._chats, self._folder.logs)

    def _tell_who_is_silent(self) -> None:
        for notice in self._readiness.sweep(time.monotonic()):
            self._screen.notice(notice)

    async def _heard(self, beat: Beat) -> None:
        for notice in self._readiness.heard(beat, time.monotonic()):
            self._screen.notice(notice)

    async def _stop_parts(self) -> bool:
        """Those who talk to clients first, those that the others need last. True if none had to be killed."""
        nobody_killed = True
        for role in STOP_ORDER:
            nobody_killed &= await self._stop_keepers([one for one in self._keepers if one.part.role == role])
        return nobody_killed

    async def _stop_keepers(self, keepers: Sequence[Keeper]) -> bool:
        deadline = self._stack.drain_seconds + STOP_MARGIN_SECONDS
        killed = await asyncio.gather(*(keeper.stop(deadline, self._hurry) for keeper in keepers))
        for keeper, was_killed in zip(keepers, killed, strict=True):
            if was_killed:
                self._screen.killed(keeper.part.name)
        return not any(killed)


async def _answers_ready(gateway: httpx.AsyncClient) -> bool:
    try:
        return (await gateway.get("/ready")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
