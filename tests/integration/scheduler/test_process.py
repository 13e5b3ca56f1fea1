import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.journal import replay
from services.scheduler.line_files import numbered_files
from services.scheduler.service import SchedulerService
from services.scheduler.simulator.workload import read_trace
from shared.bus.interface import NoResponder
from shared.bus.nats import NatsBus
from shared.messages.instances import Beat
from shared.messages.requests import Accepted, SubmitRequest
from shared.specs.ids import InstanceId, RequestId
from shared.specs.settings import MISCONFIGURED
from shared.telemetry.metrics import SchedulerMetrics
from tests.integration.scheduler.conftest import LIMITS
from tests.integration.scheduler.scripted import Cast, Worker, work
from tests.nats_server import NatsServer

COMMAND = (sys.executable, "-m", "services.scheduler.main")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


async def test_the_process_beats_serves_and_ends_when_it_is_told_to(nats_server: NatsServer, tmp_path: Path):
    beats: asyncio.Queue[Beat] = asyncio.Queue()
    async with await NatsBus.connect(nats_server.url, name="test", role="gateway") as bus:
        await bus.subscribe(Beat.SUBJECT.format(role="scheduler", instance="*"), beats.put, Beat)
        folders = {
            "DISTSERVE_JOURNAL_DIR": str(tmp_path / "journal"),
            "DISTSERVE_TRAFFIC_DIR": str(tmp_path / "traffic"),
        }
        variables = {"NATS_URL": nats_server.url, **folders}
        process = await asyncio.create_subprocess_exec(*COMMAND, env=variables, stderr=subprocess.PIPE)
        async with asyncio.timeout(30):
            while not (await beats.get()).term:  # who leads takes requests
                pass
        cast = Cast(lambda name: NatsBus.connect(nats_server.url, name=name, role="gateway"))
        gateway = await cast.gateway()
        assert isinstance(await gateway.submit(work("r")), Accepted)
        await gateway.submit(work("s", prompt=11))
        await gateway.end(work("s", prompt=11))
        await gateway.submit(work("t"))  # its answer says that the end has reached the server too
        process.send_signal(signal.SIGTERM)
        interrupted = await asyncio.wait_for(gateway.interrupted.get(), 5)
        assert interrupted.request == "r"
        _, errors = await asyncio.wait_for(process.communicate(), 15)
        gateway.die()
        await gateway.bus.close()
    assert process.returncode == 0, errors.decode()
    (file,) = numbered_files(tmp_path / "journal")
    assert not replay(file).board.live
    trace = read_trace(tmp_path / "traffic")
    assert (trace.inputs, trace.outputs) == ([11], [3])


def test_without_a_server_the_process_says_so_and_ends():
    ended = subprocess.run(COMMAND, env={"NATS_URL": "nats://127.0.0.1:9"}, capture_output=True, text=True, timeout=15)
    assert ended.returncode == 1
    assert ended.stderr.startswith("scheduler: cannot connect to NATS at nats://127.0.0.1:9")


def test_a_setting_that_cannot_be_right_is_named():
    ended = subprocess.run(
        COMMAND, env={"DISTSERVE_QUEUE_REQUESTS": "none"}, capture_output=True, text=True, timeout=15
    )
    assert ended.returncode == MISCONFIGURED
    assert "DISTSERVE_QUEUE_REQUESTS" in ended.stderr


async def test_nobody_counts_as_lost_because_the_bus_was_away(own_server: NatsServer):
    """The server is away for longer than an instance may be silent."""
    cast = Cast(lambda name: NatsBus.connect(own_server.url, name=name, role="gateway"))
    gateway, prefill, decode = await cast.gateway(), await cast.prefill(), await cast.decode()
    bus = await NatsBus.connect(own_server.url, name="scheduler-1", role="scheduler")
    dispatcher, stop = Dispatcher(replace(LIMITS, instance_lost_seconds=0.8)), asyncio.Event()
    metrics = SchedulerMetrics(InstanceId("scheduler-1"), "tiny")
    serving = asyncio.create_task(SchedulerService(bus, InstanceId("scheduler-1"), dispatcher, None, metrics).run(stop))
    while not dispatcher.board.fleet.serves("tiny"):  # noqa: ASYNC110  whatever comes over the bus may change it
        await asyncio.sleep(0.01)
    await gateway.submit(work("r"))
    await prefill.started.get()
    before = dispatcher.board.live[RequestId("r")]
    while not before.started:  # noqa: ASYNC110  its answer may still be on the way
        await asyncio.sleep(0.01)
    await own_server.restart(down_seconds=1.2)
    assert dispatcher.board.live[RequestId("r")] is before
    async with asyncio.timeout(5):
        while not await noted(prefill, work("r")):  # noqa: ASYNC110  another connection comes back when it does
            await asyncio.sleep(0.02)
    assert (await asyncio.wait_for(decode.started.get(), 5)).work == work("r")
    assert gateway.interrupted.empty()
    stop.set()
    await serving
    for part in cast.parts:
        part.die()
        await part.bus.close()
    await bus.close()


async def noted(prefill: Worker, request: SubmitRequest) -> bool:
    """As a prefill instance does, offer it until it is noted: the scheduler's connection may come back last."""
    try:
        await prefill.say_kv_ready(request)
    except NoResponder:
        return False
    return True
