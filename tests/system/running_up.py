"""`./distserve up` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READY_SECONDS = 50.0
STOP_SECONDS = 20.0


class Up:
    """One running installation, on a port of its own."""

    def __init__(self, output: Path, *options: str) -> None:
        self._output = output
        self.logs = output.parent / "logs"
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "up", "--port", "0", "--log-dir", self.logs, *options],
                cwd=ROOT,
                stdout=file,
                stderr=file,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + READY_SECONDS
        while not (ready := re.search(r"Ready in .* s: (http://127\.0\.0\.1:(\d+))", self.output)):
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        self.url, self.port = ready[1], int(ready[2])

    @property
    def output(self) -> str:
        return self._output.read_text()

    def children(self) -> set[int]:
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in pids.split()}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str) -> Up:
        started.append(Up(tmp_path / "output", *options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
