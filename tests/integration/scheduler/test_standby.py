"""Two schedulers: who answers, who takes over, and what becomes of one that wakes up."""

import asyncio
from dataclasses import replace

import pytest

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.service import SchedulerService
from shared.bus.memory import MemoryBus
from shared.messages.instances import Beat
from shared.messages.requests import Accepted
from shared.specs.ids import InstanceId
from shared.telemetry.metrics import SchedulerMetrics
from tests.integration.scheduler.conftest import LIMITS, StartScheduler
from tests.integration.scheduler.scripted import Cast, work

BRIEF = {"limits": replace(LIMITS, asleep_seconds=5.0), "lease_seconds": 0.6}


@pytest.fixture
async def two(start_scheduler: StartScheduler, cast: Cast):
    gateway, prefill, decode = await cast.gateway(), await cast.prefill(), await cast.decode()
    leader = await start_scheduler(**BRIEF)
    standby = await start_scheduler(**BRIEF, name="scheduler-2", stands_by=True)
    for scheduler in (leader, standby):
        await scheduler.knows(lambda known: known.board.fleet.serves("tiny"))
    return leader, standby, gateway, prefill, decode


async def test_the_leader_alone_answers_and_the_standby_knows_who_has_what(two):
    _, standby, gateway, prefill, decode = two
    for number in range(5):
        assert isinstance(await gateway.submit(work(f"r{number}")), Accepted)
        await prefill.started.get()
    await standby.knows(lambda known: len(known.board.live) == 5)
    await prefill.say_kv_ready(work("r0"))
    await decode.started.get()
    assert prefill.started.empty()
    assert decode.started.empty()


async def test_the_standby_takes_over_from_one_that_decides_no_more_but_still_hears(two):
    leader, standby, gateway, prefill, _ = two
    await gateway.submit(work("before"))
    first = await prefill.started.get()
    await leader.crash()
    await standby.knows(lambda _: standby.service._campaign.leads())
    assert isinstance(await asyncio.wait_for(submit_until_taken(gateway, "after"), 10), Accepted)
    second = await prefill.started.get()
    assert second.work == work("after")
    assert second.term > first.term


async def test_a_leader_that_ends_in_order_leaves_its_place_at_once(two):
    leader, standby, gateway, prefill, _ = two
    await leader.end()
    leader.task = None
    await standby.knows(lambda _: standby.service._campaign.leads())
    assert isinstance(await asyncio.wait_for(submit_until_taken(gateway, "r"), 5), Accepted)
    assert (await prefill.started.get()).work == work("r")


async def test_a_single_scheduler_serves_without_a_store_and_goes_on_in_a_later_term_when_there_is_one():
    hub = MemoryBus()
    hub.store.available = False
    cast = Cast(lambda name: connected(hub, name))
    gateway, prefill, _ = await cast.gateway(), await cast.prefill(), await cast.decode()
    stop, name, dispatcher = asyncio.Event(), InstanceId("scheduler-1"), Dispatcher(LIMITS)
    terms: asyncio.Queue[Beat] = asyncio.Queue()
    await hub.connect("observer").subscribe(Beat.SUBJECT.format(role="scheduler", instance="*"), terms.put, Beat)
    service = SchedulerService(
        hub.connect(name), name, dispatcher, None, SchedulerMetrics(name, "tiny"), lease_seconds=0.3
    )
    serving = asyncio.create_task(service.run(stop))
    async with asyncio.timeout(10):
        while not (first := (await terms.get()).term):
            pass
        assert isinstance(await gateway.submit(work("r")), Accepted)
        assert (await prefill.started.get()).term == first
        hub.store.available = True
        while (await terms.get()).term <= first:
            pass
        assert isinstance(await submit_until_taken(gateway, "s"), Accepted)
        assert (await prefill.started.get()).term > first
    stop.set()
    await serving
    for part in cast.parts:
        part.die()


async def connected(hub: MemoryBus, name: str):
    return hub.connect(name)


async def submit_until_taken(gateway, request: str):
    """As a gateway does: until somebody answers."""
    while True:
        try:
            return await asyncio.wait_for(gateway.submit(work(request)), 0.5)
        except Exception:  # nobody is there, or does not answer
            await asyncio.sleep(0.05)
