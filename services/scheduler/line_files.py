"""Lines of text in numbered files, the oldest of which go. A thread writes them: the disk may be slow or full."""

import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import structlog

log = structlog.get_logger()

MOST_WAITING_LINES = 10_000
WRITE_SECONDS = 0.1  # between two writes: to wake a thread for every line costs more than all else about it


class FirstLine(str):
    """The line that begins a new file."""


class LineWriter(threading.Thread):
    """Never makes its caller wait. After a failure nothing is written until a FirstLine begins another file."""

    def __init__(self, name: str, folder: Path, files: int) -> None:
        """Keeps the newest `files` files in `folder`, whoever wrote the older ones. `name`: for the log."""
        super().__init__(name=name, daemon=True)
        self._folder, self._files = folder, files
        self.failed = threading.Event()  # lines are thrown away until the next file; for the caller to clear then
        self._lines: deque[str] = deque()
        self._stopped = threading.Event()
        self._file: TextIO | None = None

    def take(self, line: str) -> bool:
        """False if too many lines wait already."""
        if len(self._lines) >= MOST_WAITING_LINES:
            return False
        self._lines.append(line)
        return True

    def stop(self, timeout_seconds: float) -> None:
        """Write what waits; give up on a disk that takes longer."""
        self._stopped.set()
        self.join(timeout_seconds)

    def run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopped.wait(WRITE_SECONDS)
            try:
                self._write_waiting()
            except OSError as error:
                log.warning("lines_not_written", what=self.name, error=str(error))
                self.failed.set()
                self._close_file()
        self._close_file()

    def _write_waiting(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            if isinstance(line, FirstLine):
                self._next_file()
            if self._file is not None:
                self._file.write(line + "\n")
        if self._file is not None:
            self._file.flush()

    def _next_file(self) -> None:
        self._close_file()
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = numbered_files(self._folder)
        number = int(kept[-1].stem) + 1 if kept else 1
        while self._file is None:
            try:
                self._file = (self._folder / f"{number:08d}.jsonl").open("x")
            except FileExistsError:  # of another process that writes here
                number += 1
        for old in kept[: max(0, len(kept) + 1 - self._files)]:
            old.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written is lost; the descriptor is closed all the same
                self._file.close()
            self._file = None


def numbered_files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(file for file in folder.glob("*.jsonl") if file.stem.isdigit())
