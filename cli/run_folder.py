"""Where one run of the stack writes: .distserve/run/<start time>-<process id>/."""

import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from cli.problems import Problem

KEPT_RUNS = 10
TRAFFIC = "traffic"  # what was served, as a trace for the simulator
LEAST_FREE_BYTES = 16 << 20
RUNS = Path(__file__).resolve().parents[1] / ".distserve" / "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where the parts of a run that is alive are found, for the other commands."""

    gateway_url: str
    nats_url: str
    operator_seed: str  # a file
    model: str  # a folder


class RunFolder:
    """Made by `create`. Its lock says that the run is alive; the kernel frees it however the run ends."""

    def __init__(self, path: Path, logs: Path) -> None:
        self.path = path
        self.logs = logs
        self.nats = path / "nats"
        self.keys = path / "keys"  # made by make_keys
        for folder in (self.path, self.logs, self.nats):
            folder.mkdir(parents=True, exist_ok=True)
        self._running = path / "running.json"
        self.metrics = path / "metrics.json"
        self._lock = _try_lock(path)

    @classmethod
    def create(cls, runs: Path, log_dir: Path | None = None) -> Self:
        """A new folder in `runs`; of those of ended runs the oldest go. `log_dir`: where to put the logs instead.

        Problem if nothing can be written there.
        """
        path = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            folder = cls(path, log_dir or path / "logs")
        except OSError as error:
            raise Problem(f"cannot write there: {error}") from error
        free_bytes = shutil.disk_usage(folder.logs).free
        if free_bytes < LEAST_FREE_BYTES:
            folder.close()
            raise Problem(f"only {free_bytes >> 20} MiB are left on the disk of {folder.logs}: free some first")
        for old in sorted(runs.iterdir(), reverse=True)[KEPT_RUNS:]:
            lock = _try_lock(old)
            if lock is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(lock)
        return folder

    def announce(self, running: Running) -> None:
        self._running.write_text(json.dumps(asdict(running)))

    def close(self) -> None:
        """Keep what a person may want to read, remove the rest."""
        for folder in (self.nats, self.keys):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self._running, self.metrics):
            file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def newest_with(name: str, runs: Path) -> Path | None:
    """Folder `name` of the newest run that has it: of the running one, if one runs."""
    return max(runs.glob(f"*/{name}"), default=None)


def newest_running(runs: Path) -> Running | None:
    """Of the runs in `runs` that are alive the one that was started last."""
    for announced in sorted(runs.glob("*/running.json"), reverse=True):
        lock = _try_lock(announced.parent)
        if lock is None:
            return Running(**json.loads(announced.read_text()))
        os.close(lock)
    return None


def announced_in(folder: Path) -> Running | None:
    """What the run in `folder` has announced, if it has and is not over."""
    try:
        return Running(**json.loads((folder / "running.json").read_text()))
    except (FileNotFoundError, ValueError):  # not yet, or half written
        return None


def announced_by(gateway_url: str, runs: Path) -> Path | None:
    """The folder of the run whose gateway is at this URL."""
    for folder in sorted(runs.glob("*/"), reverse=True):
        running = announced_in(folder)
        if running is not None and running.gateway_url == gateway_url:
            return folder
    return None


def _try_lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
