"""The supervisor over real processes and a real NATS server; only the services are fake."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
PATIENCE_SECONDS = 20.0


class Supervised:
    """A supervisor process and what it has printed so far."""

    def __init__(self, root: Path, drain_seconds: float, **behaviours: str) -> None:
        self.root = root
        fakes = {f"DISTSERVE_FAKE_{role.upper()}": behaviour for role, behaviour in behaviours.items()}
        self._output = root / "output"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "run_supervisor.py", root, str(drain_seconds)],
                stdout=output,
                stderr=output,
                env=os.environ | fakes | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str, times: int = 1) -> "re.Match[str]":
        """The last of `times` matches in the output."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(matches := list(re.finditer(pattern, self.output))) < times:
            assert time.monotonic() < deadline, f"{pattern!r} never came:\n{self.output}"
            assert self.process.poll() is None, self.output
            time.sleep(0.02)
        return matches[times - 1]

    def status(self) -> int:
        return self.process.wait(timeout=PATIENCE_SECONDS)

    def processes(self) -> dict[int, str]:
        """Every living process that works in this folder, with its command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    if os.readlink(entry / "cwd") == str(self.root):
                        found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
                except OSError:
                    continue
        return found

    def pid_of(self, part: str) -> int:
        (pid,) = [pid for pid, command in self.processes().items() if part in command]
        return pid


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    for role in ("gateway", "scheduler", "prefill", "decode"):
        service = tmp_path / "services" / role
        service.mkdir(parents=True)
        shutil.copy(HERE / "fake_service.py", service / "main.py")
        (service / "__init__.py").touch()
    (tmp_path / "services" / "__init__.py").touch()
    (tmp_path / "deploy").mkdir()
    shutil.copy(REPOSITORY / "deploy" / "nats.conf", tmp_path / "deploy")
    started: list[Supervised] = []

    def start(drain_seconds: float = 5.0, **behaviours: str) -> Supervised:
        started.append(Supervised(tmp_path, drain_seconds, **behaviours))
        return started[-1]

    yield start
    for supervised in started:
        supervised.process.kill()
        supervised.process.wait()


def test_it_tells_what_is_ready_and_stops_everything_in_order(supervise: Callable[..., Supervised]):
    supervised = supervise()
    url = supervised.wait_for(r"Ready in .* s: (http://127\.0\.0\.1:(\d+))")
    for part in ("nats", "gateway", "scheduler", "prefill", "decode"):
        assert re.search(rf"✓ {part} +\d+\.\d s", supervised.output), part
    supervised.wait_for(f"curl -N {url[1]}/v1/chat/completions")
    assert len(supervised.processes()) == 5

    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.status() == 0, supervised.output
    assert (supervised.root / "stopped").read_text().split() == ["gateway", "decode", "prefill", "scheduler"]
    assert supervised.processes() == {}
    (run,) = (supervised.root / "run").iterdir()
    assert sorted(entry.name for entry in run.iterdir()) == ["logs"]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may linger, a listener must not
        again.bind(("127.0.0.1", int(url[2])))


def test_a_part_that_dies_is_reported_with_its_last_lines_and_started_again(supervise: Callable[..., Supervised]):
    supervised = supervise()
    supervised.wait_for("Ready in")
    os.kill(supervised.pid_of("services.decode"), signal.SIGKILL)
    supervised.wait_for(r"decode 1 ended by itself after .* \(SIGKILL\); its last lines:\n +\| this is decode-")
    supervised.wait_for("✓ decode", times=2)


def test_nats_comes_back_where_it_was_and_the_parts_find_it(supervise: Callable[..., Supervised]):
    supervised = supervise()
    supervised.wait_for("Ready in")
    os.kill(supervised.pid_of("nats-server"), signal.SIGKILL)
    supervised.wait_for("nats ended by itself")
    os.kill(supervised.pid_of("services.prefill"), signal.SIGKILL)
    supervised.wait_for("✓ prefill", times=2)  # its new instance is heard, over the new server


def test_a_part_that_cannot_start_is_given_up_and_everything_else_stopped(supervise: Callable[..., Supervised]):
    supervised = supervise(prefill="dies")
    assert supervised.status() == 1
    assert "no memory of the future" in supervised.output
    assert re.search(
        r"problem: prefill 1 ended 3 times in a row and is given up: see .*prefill-1\.log", supervised.output
    )
    assert "Traceback" not in supervised.output
    assert supervised.processes() == {}


def test_nothing_is_left_running_when_the_supervisor_is_killed(supervise: Callable[..., Supervised]):
    supervised = supervise(decode="ignores SIGTERM")
    supervised.wait_for("Ready in")
    supervised.process.kill()
    deadline = time.monotonic() + 5
    while supervised.processes():
        assert time.monotonic() < deadline, supervised.processes()
        time.sleep(0.02)


def test_a_second_signal_ends_what_does_not_want_to_end(supervise: Callable[..., Supervised]):
    supervised = supervise(drain_seconds=60, decode="ignores SIGTERM")
    supervised.wait_for("Ready in")
    supervised.process.send_signal(signal.SIGINT)
    supervised.wait_for("Stopping")
    supervised.process.send_signal(signal.SIGINT)
    assert supervised.status() == 1
    assert "decode 1 did not end when asked and was killed" in supervised.output
    assert supervised.processes() == {}
