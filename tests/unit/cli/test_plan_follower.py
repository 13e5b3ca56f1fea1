"""What a running stack does with a plan."""

import asyncio
import io
from collections.abc import AsyncIterator, Sequence

import pytest
from rich.console import Console

from cli.changeover import Engine
from cli.plan_follower import PlanFollower
from cli.problems import Problem
from cli.screen import Screen
from shared.bus.key_value import Bucket, KeyValue
from shared.bus.memory import MemoryBus
from shared.messages.plans import Plan


class Instances:
    """Start and stop at once."""

    def __init__(self) -> None:
        self.engines = [Engine("prefill", 1), Engine("decode", 1), Engine("decode", 2)]
        self.history: list[str] = []
        self.broken = ""

    def running(self) -> Sequence[Engine]:
        return list(self.engines)

    async def add(self, engine: Engine) -> None:
        if self.broken:
            raise Problem(self.broken)
        self.engines.append(engine)
        self.history.append(f"+{engine.name}")

    async def remove(self, engine: Engine) -> None:
        self.engines.remove(engine)
        self.history.append(f"-{engine.name}")


class Followed:
    """A follower that runs; `tell` publishes a plan, and waits until it was dealt with."""

    def __init__(self, plans: KeyValue[Plan], *, only_tells: bool = False) -> None:
        self.instances, self.plans, self.output = Instances(), plans, io.StringIO()
        screen = Screen(Console(file=self.output, width=200))
        self.task = asyncio.create_task(PlanFollower(self.instances, (), screen, only_tells=only_tells).run(plans))
        self.epoch = 0

    async def tell(self, prefill: int, decode: int, end: str) -> None:
        self.epoch += 1
        plan = Plan(epoch=self.epoch, prefill=prefill, decode=decode, reasons=("because",), made_at=0.0)
        await self.plans.put(Plan.KEY, plan)
        async with asyncio.timeout(5):
            while end not in self.output.getvalue():  # noqa: ASYNC110  it is printed when it is done
                await asyncio.sleep(0.01)


@pytest.fixture
async def plans() -> AsyncIterator[KeyValue[Plan]]:
    async with MemoryBus().connect("up") as bus:
        yield bus.key_value(Bucket(Plan.BUCKET), Plan)


@pytest.fixture
async def followed(plans: KeyValue[Plan]) -> AsyncIterator[Followed]:
    one = Followed(plans)
    yield one
    one.task.cancel()


async def test_one_plan_after_the_other_is_followed(followed: Followed):
    await followed.tell(2, 1, "Plan 1 holds: 2 prefill, 1 decode")
    await followed.tell(1, 2, "Plan 2 holds: 1 prefill, 2 decode")
    assert followed.instances.history == ["+prefill 2", "-decode 2", "+decode 2", "-prefill 2"]
    assert "because" in followed.output.getvalue()


async def test_an_instance_that_does_not_start_leaves_the_others_as_they_are(followed: Followed):
    followed.instances.broken = "prefill 2 was not ready"
    await followed.tell(2, 1, "Plan 1 is not followed further: prefill 2 was not ready")
    assert followed.instances.history == []
    followed.instances.broken = ""
    await followed.tell(2, 1, "Plan 2 holds")


async def test_a_plan_for_another_number_of_instances_is_not_followed(followed: Followed):
    await followed.tell(2, 2, "Plan 1 is not for the 3 instances that there are")
    assert followed.instances.history == []


async def test_without_replan_a_plan_is_only_told(plans: KeyValue[Plan]):
    followed = Followed(plans, only_tells=True)
    await followed.tell(2, 1, "up --replan would follow it")
    assert followed.instances.history == []
    followed.task.cancel()
