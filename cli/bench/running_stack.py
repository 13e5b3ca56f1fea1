"""A stack of this project's in processes of its own: started for a measurement, stopped after it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from cli.part_process import die_with
from cli.problems import Problem
from cli.run_folder import RUNS, announced_in

READY_SECONDS = 300.0  # a large model takes its time to load
STOP_SECONDS = 60.0
POLL_SECONDS = 0.1
SHOWN_CHARS = 1500


@dataclass(frozen=True, slots=True)
class RunningStack:
    url: str
    folder: Path  # of its run
    supervisor: int  # process id

    def cpu_seconds(self) -> dict[str, float]:
        """What each of its processes has used of the CPU so far, by its part: "decode", "gateway", "nats"."""
        spent: dict[str, float] = {}
        for child in Path(f"/proc/{self.supervisor}/task/{self.supervisor}/children").read_text().split():
            with suppress(OSError):  # it has just ended
                part = _part(Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0"))
                spent[part] = spent.get(part, 0.0) + _cpu_seconds(int(child))
        return spent


@contextmanager
def running_stack(options: Sequence[str], output: Path) -> Iterator[RunningStack]:
    """`./distserve up` with `options` until it is ready. What it prints goes to the file `output`."""
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "up", "--port", "0", "--shutdown-timeout", "5", *options],
            cwd=RUNS.parents[1],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=die_with(os.getpid()),
        )
    try:
        yield _ready(process, output)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: "subprocess.Popen[bytes]", output: Path) -> RunningStack:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for folder in RUNS.glob(f"*-{process.pid}"):
            running = announced_in(folder)
            if running is not None and _answers_ready(running.gateway_url):
                return RunningStack(running.gateway_url, folder, process.pid)
        time.sleep(POLL_SECONDS)
    raise Problem(f"the stack did not become ready:\n{output.read_text()[-SHOWN_CHARS:]}")


def _answers_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _part(command: Sequence[str]) -> str:
    """From a command line: `python -m services.decode.main` is "decode"."""
    service = next((word for word in command if word.startswith("services.")), "")
    return service.split(".")[1] if service else Path(command[0]).name


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
