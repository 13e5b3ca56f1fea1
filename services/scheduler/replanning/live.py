"""Replanning beside live traffic: runs the search in a process, publishes what it decides. Decides nothing itself."""

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import structlog
from msgspec import structs
from prometheus_client import Gauge

from services.scheduler.instances import Fleet
from services.scheduler.replanning.replanner import Change, Found, Layout, Replanner, Search
from services.scheduler.replanning.shift import Shift
from services.scheduler.replanning.task import SEARCH_SECONDS, ReplanningSettings, Task
from services.scheduler.traffic import Call
from shared.bus.interface import Bus, BusError
from shared.bus.key_value import Bucket, RevisionChanged
from shared.messages.codec import MalformedMessage
from shared.messages.plans import Plan

log = structlog.get_logger()

ROOT = Path(__file__).resolve().parents[3]
COMMAND = (sys.executable, "-m", "services.scheduler.replanning.search")
RETRY_SECONDS = 5.0
FOLLOW_SECONDS = 300.0  # for a plan to be followed; until then there may be more or fewer instances for a while
POLL_SECONDS = 0.2


class LiveReplanning:
    """Listens to the traffic; searches within `async with`. Whatever fails there is logged and leaves serving alone."""

    def __init__(self, bus: Bus, settings: ReplanningSettings, fleet: Callable[[], Fleet], epoch: Gauge) -> None:
        self._settings, self._fleet, self._epoch = settings, fleet, epoch
        self._store = bus.key_value(Bucket(Plan.BUCKET), Plan)
        self._replanner = Replanner()
        self._epoch_seen = 0
        self._planned, self._planned_at = Layout(0, 0), -math.inf
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: asyncio.Queue[Search] = asyncio.Queue(1)  # the replanner asks for one at a time

    def arrived(self, at: float, input_len: int) -> None:
        self._note(self._replanner.arrived(at, input_len))

    def served(self, call: Call) -> None:
        self._note(self._replanner.served(call))

    def _note(self, news: Shift | Search | None) -> None:
        if isinstance(news, Shift):
            log.info("traffic_shifted", stream=news.stream, reason=str(news))
        elif news is not None:
            self._asked.put_nowait(news)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow_epoch()), asyncio.create_task(self._search_when_asked())]
        for task in self._tasks:
            task.add_done_callback(_say_why)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow_epoch(self) -> None:
        """Also of plans that another scheduler has made."""
        try:
            async for entry in self._store.watch(Plan.KEY):
                self._saw(entry.value.epoch if entry is not None else 0)
        except (BusError, MalformedMessage) as error:
            log.warning("plan_not_followed", error=str(error))

    def _saw(self, epoch: int) -> None:
        self._epoch_seen = max(self._epoch_seen, epoch)
        self._epoch.set(self._epoch_seen)

    async def _search_when_asked(self) -> None:
        while True:
            search = await self._asked.get()
            now = await self._layout()
            found = await self._search(now, search) if now.prefill and now.decode and now.devices > 2 else []
            decision = self._replanner.searched(now, found)
            if isinstance(decision, Change):
                await self._publish(decision)
            elif found:
                log.info("plan_kept", layout=str(now), reason=decision.reason)
            else:
                log.info("plan_kept", layout=str(now), reason="there is nothing to choose, or the search failed")

    async def _layout(self) -> Layout:
        """Of the instances that take work, but not while the last plan is being followed."""
        end = self._planned_at + FOLLOW_SECONDS
        now = layout_of(self._fleet())
        while now.devices != self._planned.devices and time.monotonic() < end:
            await asyncio.sleep(POLL_SECONDS)  # beats change it
            now = layout_of(self._fleet())
        return now

    async def _search(self, now: Layout, search: Search) -> list[Found]:
        began = time.monotonic()
        try:
            async with asyncio.timeout(SEARCH_SECONDS), _process() as process:
                output, errors = await process.communicate(self._task(now, search).to_json())
        except (TimeoutError, OSError) as error:
            log.warning("search_failed", error=repr(error))
            return []
        if process.returncode:
            log.warning("search_failed", status=process.returncode, error=errors.decode(errors="replace")[-500:])
            return []
        found = [Found(Layout(**one["layout"]), one["goodput"]) for one in json.loads(output)]  # our own process
        log.info("search_ended", seconds=round(time.monotonic() - began, 2), layouts=len(found))
        return found

    def _task(self, now: Layout, search: Search) -> Task:
        capacities = [one.capacity for one in self._fleet() if one.takes_work]
        return Task(
            settings=self._settings,
            now=now,
            calls=search.calls,
            kv_tokens=min((one.blocks * one.block_tokens for one in capacities), default=0),
            max_batch=min((one.max_batch for one in capacities if one.max_batch), default=0),
            batch_tokens=min((one.batch_tokens for one in capacities if one.batch_tokens), default=0),
        )

    async def _publish(self, change: Change) -> None:
        """Until it is there: the store may be away for a while."""
        while True:
            try:
                epoch = await self._write(change)
            except RevisionChanged:
                continue
            except (BusError, MalformedMessage) as error:
                log.warning("plan_not_published", error=str(error), retry_seconds=RETRY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._saw(epoch)
                self._planned, self._planned_at = change.layout, time.monotonic()
                log.info(
                    "plan_published",
                    epoch=epoch,
                    prefill=change.layout.prefill,
                    decode=change.layout.decode,
                    reasons=change.reasons,
                    in_containers=compose_line(change.layout),
                )
                return

    async def _write(self, change: Change) -> int:
        """Its epoch. The first write makes the bucket; where that was lost, epochs go on."""
        layout, now, epoch = change.layout, time.time(), self._epoch_seen + 1
        plan = Plan(epoch=epoch, prefill=layout.prefill, decode=layout.decode, reasons=change.reasons, made_at=now)
        with suppress(RevisionChanged):
            await self._store.create(Plan.KEY, plan)
            return epoch
        entry = await self._store.get(Plan.KEY)
        if entry is None:
            raise RevisionChanged("the plan was deleted a moment ago")
        plan = structs.replace(plan, epoch=max(epoch, entry.value.epoch + 1))
        await self._store.update(Plan.KEY, plan, entry.revision)
        return plan.epoch


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("replanning_ended", exc_info=error)


@asynccontextmanager
async def _process() -> AsyncIterator[asyncio.subprocess.Process]:
    """The search; it does not outlive this."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*COMMAND, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def layout_of(fleet: Fleet) -> Layout:
    """Of the instances that take work."""
    roles = [one.role for one in fleet if one.takes_work and not one.colocated]
    return Layout(roles.count("prefill"), roles.count("decode"))


def compose_line(layout: Layout) -> str:
    """What to type to have it in containers. Services that it does not name stay as they are, however many of them."""
    scales = f"--scale prefill={layout.prefill} --scale decode={layout.decode}"
    return f"docker compose up --detach --no-deps --no-recreate {scales} prefill decode"
