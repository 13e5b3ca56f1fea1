"""The doctor's probes on this machine, and what it hears over real NATS servers."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli.doctor import machine, stack
from cli.doctor.command import look_at_machine
from cli.keys import make_keys, seed_file
from shared.bus.heart import Heart
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId
from tests.nats_server import GUARDED, NatsServer, nats_server

__all__ = ["nats_server"]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path, GUARDED, make_keys(tmp_path / "keys"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stack, "LISTEN_SECONDS", 0.5)


def test_two_processes_move_kv_and_say_over_what(monkeypatch: pytest.MonkeyPatch):
    report = machine.kv_pair(ROOT)
    assert report.link.ok, report.link.detail
    assert report.link.transport == ("tcp" if report.memory_access else "cma")
    assert report.link.gigabytes_per_second > 0
    assert report.copy_gigabytes_per_second > 0
    monkeypatch.setenv("UCX_TLS", "tcp")
    slow = machine.kv_pair(ROOT)
    assert slow.link.transport == "tcp"
    assert "instead of cma" in slow.link.detail


def test_ucx_is_asked_what_it_has():
    assert {"tcp", "cma"} <= set(machine.ucx_transports(ROOT))


def test_a_probe_that_dies_is_a_failure_with_its_last_words(tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").touch()
    with pytest.raises(machine.ProbeFailed, match=r"exit status 1: .*shared\.transport"):
        machine.ucx_transports(tmp_path)


def test_without_ucxx_nothing_of_ucx_is_tried_and_the_reason_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "has_ucxx", lambda: False)
    monkeypatch.setattr(machine, "_last_line", lambda *_: pytest.fail("a probe was started"))
    findings, pair = look_at_machine("nobody/no-such-model", loaded=False)
    told = {finding.topic: finding for finding in findings}
    assert pair is None
    assert (told["UCX"].status, "ucxx is not installed" in told["UCX"].fact) == ("ok", True)
    assert (told["model"].status, "downloaded by the first start" in told["model"].fact) == ("ok", True)


def test_the_facts_of_this_machine_can_be_read():
    python, resources = machine.read_python(ROOT), machine.read_resources()
    assert python.version == sys.version_info[:2]
    assert not python.missing
    assert 0 < resources.cores <= (os.cpu_count() or 1)
    assert resources.memory_bytes > 1 << 20
    machine.read_isolation()


async def test_it_hears_beats_and_clocks_and_that_the_server_is_locked(guarded: NatsServer, tmp_path: Path):
    def settings(role: str) -> BusSettings:
        return BusSettings(url=guarded.url, nkey_seed_file=seed_file(tmp_path / "keys", role))

    def describe(number: int) -> Beat:
        return Beat(instance=InstanceId("decode-1"), role="decode", number=number)

    async with await NatsBus.connect(settings("decode"), name="decode-1", role="decode") as bus:
        listening = asyncio.create_task(stack.listen(settings("operator")))
        heart, slow = Heart(bus, describe), replace(describe(1), instance=InstanceId("decode-2"), sent_at=1.0)
        while not listening.done():
            await heart.beat()
            await bus.publish(Beat.SUBJECT.format(role="decode", instance="decode-2"), slow)
            await asyncio.sleep(0.05)
        report = await listening
    assert (report.error, report.lock) == ("", "locked")
    assert abs(report.heard[InstanceId("decode-1")].lateness_seconds) < 0.5
    assert report.heard[InstanceId("decode-2")].lateness_seconds > 1e9


async def test_an_open_server_and_no_server_are_told(nats_server: NatsServer):
    assert (await stack.listen(BusSettings(url=nats_server.url))).lock == "open"
    assert "is the server running" in (await stack.listen(BusSettings(url="nats://127.0.0.1:9"))).error


async def test_a_gateway_that_does_not_answer_is_told():
    assert "ConnectError" in await stack.gateway_answer("http://127.0.0.1:9")


def test_the_command_ends_with_status_1_and_a_remedy_when_there_is_no_stack_where_it_should_be(tmp_path: Path):
    told = subprocess.run(
        [sys.executable, "-m", "cli", "doctor", "--nats", "nats://127.0.0.1:9", "--model", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert told.returncode == 1
    assert "→" in told.stdout
    assert "2 problem(s)" in told.stdout, told.stdout
    assert "Traceback" not in told.stdout + told.stderr
