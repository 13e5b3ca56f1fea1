"""Shifted traffic leads to a published plan: real search processes, the plan in a real store."""

import asyncio
import contextlib
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.scheduler.instances import Fleet, Instance
from services.scheduler.replanning.live import LiveReplanning
from services.scheduler.replanning.task import ReplanningSettings, Task
from services.scheduler.traffic import Call
from shared.bus import Bus
from shared.bus.key_value import Bucket, StoreUnavailable
from shared.bus.nats import NatsBus
from shared.messages.instances import Capacity
from shared.messages.plans import Plan
from shared.specs.ids import InstanceId, role_of
from shared.telemetry.metrics import SchedulerMetrics
from tests.integration.scheduler.scripted import Connect
from tests.nats_server import NatsServer
from tests.profiles import write_profile

SEARCHED_SECONDS = 50.0  # a search, on a machine that does much else


@pytest.fixture
def settings(tmp_path: Path) -> ReplanningSettings:
    """A prompt of 900 tokens takes 0.45 s, a step with n sequences 10 + n ms."""
    profile = write_profile(tmp_path / "profile.json", prefill_ms=(1.0, 0.5, 0.0), decode_ms=(10.0, 0.0, 1.0))
    return ReplanningSettings(profile=str(profile), model="demo", ttft_seconds=1.0, tpot_seconds=0.03)


class Machine:
    """Instances that beat, requests that arrive by a clock of their own, and the plans that come of them."""

    def __init__(self, bus: Bus, settings: ReplanningSettings) -> None:
        self.fleet, self.at = Fleet(), 1e9
        self.metrics = SchedulerMetrics(InstanceId("scheduler-1"), "demo")
        self.replanning = LiveReplanning(bus, settings, lambda: self.fleet, self.metrics.plan_epoch)

    def has(self, *instances: str) -> None:
        capacity = Capacity(block_tokens=16, blocks=4000, max_model_tokens=4096)
        names = [InstanceId(name) for name in instances]
        self.fleet = Fleet(
            Instance(id=name, role=role_of(name), ready=True, capacity=capacity)  # pyright: ignore[reportArgumentType]
            for name in names
        )

    def serve(self, count: int, prompt: int, answer: int) -> None:
        for number in range(count):
            self.at += 0.5 + number % 7 / 10
            self.replanning.arrived(self.at, prompt + number % 5)
            self.replanning.served(Call(self.at, prompt + number % 5, answer + number % 3))


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


async def logged(event: str, logs: list[MutableMapping[str, Any]]) -> None:
    async with asyncio.timeout(SEARCHED_SECONDS):
        while not any(entry["event"] == event for entry in logs):  # noqa: ASYNC110  a process has to end
            await asyncio.sleep(0.02)


async def epoch_of(bus: Bus) -> int:
    try:
        entry = await bus.key_value(Bucket(Plan.BUCKET), Plan).get(Plan.KEY)
    except StoreUnavailable:  # nobody has written there yet
        return 0
    return entry.value.epoch if entry is not None else 0


async def plan_of(bus: Bus, epoch: int) -> Plan:
    """Wait for it, as whoever follows plans does."""
    entries = bus.key_value(Bucket(Plan.BUCKET), Plan).watch(Plan.KEY)
    async with asyncio.timeout(SEARCHED_SECONDS):
        async for entry in entries:
            if entry is not None and entry.value.epoch >= epoch:
                return entry.value
    raise AssertionError("the watch has ended")


async def test_prompts_that_get_longer_move_an_instance_to_prefill_and_back(
    connect: Connect, settings: ReplanningSettings
):
    follower = await connect("follower")
    epoch = await epoch_of(follower)  # the server is shared by tests
    machine = Machine(await connect("scheduler"), settings)
    machine.has("prefill-1", "decode-1", "decode-2")
    async with machine.replanning:
        machine.serve(300, prompt=20, answer=60)
        machine.serve(250, prompt=900, answer=4)
        plan = await plan_of(follower, epoch + 1)
        assert (plan.epoch, plan.prefill, plan.decode) == (epoch + 1, 2, 1)
        assert "lengths of prompts have changed" in plan.reasons[0]
        assert "2 prefill + 1 decode serves" in plan.reasons[2]
        machine.has("prefill-1", "prefill-2", "decode-1", "decode-2")  # the old one has not gone yet
        machine.serve(300, prompt=900, answer=4)
        machine.serve(250, prompt=20, answer=60)
        await asyncio.sleep(0.3)
        machine.has("prefill-1", "prefill-2", "decode-1")
        plan = await plan_of(follower, epoch + 2)
        assert (plan.epoch, plan.prefill, plan.decode) == (epoch + 2, 1, 2)
    assert f"distserve_plan_epoch {epoch + 2}.0" in machine.metrics.render()[0].decode()


async def test_what_serves_this_traffic_best_already_is_kept(
    connect: Connect, settings: ReplanningSettings, logs: list[MutableMapping[str, Any]]
):
    follower = await connect("follower")
    before = await epoch_of(follower)
    machine = Machine(await connect("scheduler"), settings)
    machine.has("prefill-1", "prefill-2", "decode-1")
    async with machine.replanning:
        machine.serve(300, prompt=20, answer=60)
        machine.serve(250, prompt=900, answer=4)
        await logged("plan_kept", logs)
    assert await epoch_of(follower) == before


async def test_a_search_is_told_what_the_instances_say_of_themselves(
    connect: Connect, settings: ReplanningSettings, monkeypatch: pytest.MonkeyPatch
):
    asked: asyncio.Queue[Task] = asyncio.Queue()
    to_json = Task.to_json

    def told(task: Task) -> bytes:
        asked.put_nowait(task)
        return to_json(task)

    monkeypatch.setattr(Task, "to_json", told)
    machine = Machine(await connect("scheduler"), settings)
    prefill, decode = Capacity(block_tokens=16, blocks=4000, batch_tokens=640), Capacity(block_tokens=16, blocks=3000)
    names = {"prefill-1": prefill, "decode-1": decode, "decode-2": decode}
    machine.fleet = Fleet(
        Instance(id=InstanceId(name), role=role_of(InstanceId(name)), ready=True, capacity=capacity)  # pyright: ignore[reportArgumentType]
        for name, capacity in names.items()
    )
    async with machine.replanning, asyncio.timeout(SEARCHED_SECONDS):
        machine.serve(300, prompt=20, answer=60)
        machine.serve(250, prompt=900, answer=4)
        task = await asked.get()
    assert (task.batch_tokens, task.kv_tokens) == (640, 48_000)


async def test_no_search_outlives_its_scheduler(connect: Connect, settings: ReplanningSettings):
    machine = Machine(await connect("scheduler"), settings)
    machine.has("prefill-1", "decode-1", "decode-2")
    others = children()
    async with machine.replanning:
        machine.serve(300, prompt=20, answer=60)
        machine.serve(250, prompt=900, answer=4)
        async with asyncio.timeout(SEARCHED_SECONDS):
            while not children() - others:  # noqa: ASYNC110  a process has to start
                await asyncio.sleep(0.005)
    assert children() == others


async def test_a_plan_waits_for_a_store_that_is_away(
    tmp_path: Path,
    settings: ReplanningSettings,
    logs: list[MutableMapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    own_server = NatsServer(tmp_path)
    own_server.start()
    monkeypatch.setattr("services.scheduler.replanning.live.RETRY_SECONDS", 0.1)
    async with await NatsBus.connect(own_server.url, name="scheduler", role="scheduler") as bus:
        machine = Machine(bus, settings)
        machine.has("prefill-1", "decode-1", "decode-2")
        async with machine.replanning:
            own_server.stop()
            machine.serve(300, prompt=20, answer=60)
            machine.serve(250, prompt=900, answer=4)
            await logged("plan_not_published", logs)
            own_server.start()
            assert (await plan_of(bus, 1)).prefill == 2
    own_server.stop()


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end as it is looked at
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found
