"""One child process: its log file, its end, and that it never outlives us."""

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cli.stack import Part

PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 16_384


class PartProcess:
    """Started by `start`. Its output goes to its log file, so that it never waits for a slow reader."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self._process = process
        self._log = log
        self._log_start = log_start
        self._started_at = time.monotonic()

    @classmethod
    async def start(cls, part: Part, *, cwd: Path, logs: Path, inherited: Mapping[str, str]) -> "PartProcess":
        """OSError if the command cannot be run. Call it from the main thread: see `die_with`."""
        log = logs / part.log_name
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *part.command,
                cwd=cwd,
                env={**inherited, **part.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for us: we stop the parts in order
                preexec_fn=die_with(os.getpid()),
            )
            return cls(process, log, output.tell())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    @property
    def ran_seconds(self) -> float:
        return time.monotonic() - self._started_at

    async def ended(self) -> int:
        """Wait for its end; its exit status, negative for a signal."""
        return await self._process.wait()

    def terminate(self) -> None:
        if self.running:
            self._process.terminate()

    def kill(self) -> None:
        """It and whatever it has started."""
        if self.running:
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(self.pid, signal.SIGKILL)

    def last_lines(self, count: int) -> list[str]:
        """The last lines that this process wrote."""
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]


def die_with(parent: int) -> Callable[[], None]:
    """To be run in the child: the kernel is to kill it when the thread that started it ends, for whatever reason."""
    set_option = ctypes.CDLL(None, use_errno=True).prctl

    def ask_the_kernel() -> None:
        set_option(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)

    return ask_the_kernel
