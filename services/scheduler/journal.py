"""What the dispatcher was told and what it decided, one line of JSON each; and the same decisions made again from that.

A file begins with a snapshot of the dispatcher, then has one line per event. So every file can be replayed by itself,
however many before it are deleted. When lines cannot be written, the file ends, and a later one begins with a fresh
snapshot: a file never has a hole.
"""

import json
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import structlog

from services.scheduler.dispatcher import Dispatcher, Snapshot
from services.scheduler.events import Effect, Event
from services.scheduler.plain import from_tagged, read_as, tagged, to_json

log = structlog.get_logger()

MOST_WAITING_LINES = 10_000
RETRY_SECONDS = 10.0
STOP_SECONDS = 3.0


class Journal:
    """Never waits and never fails: a thread writes, as the disk may be slow or full."""

    def __init__(self, folder: Path, *, file_bytes: int, files: int, snapshot: Callable[[], Snapshot]) -> None:
        """Keeps the newest `files` files of about `file_bytes` bytes in `folder`, whoever wrote the older ones."""
        self._file_bytes, self._snapshot = file_bytes, snapshot
        self.failed = threading.Event()  # lines are thrown away until the next file
        self._writer = _Writer(folder, files, self.failed)
        self._writer.start()
        self._written_bytes = 0
        self._closed_until: float | None = None  # None: a file is open
        self._begin_file(now=0.0)

    def record(self, event: Event, effects: Sequence[Effect]) -> None:
        """Call it after each step of the dispatcher."""
        if self._closed_until is None:
            line = to_json({"event": tagged(event), "effects": [tagged(effect) for effect in effects]})
            self._written_bytes += len(line)
            if not self._writer.take(line) or self.failed.is_set():
                self._closed_until = event.now + RETRY_SECONDS
            elif self._written_bytes >= self._file_bytes:
                self._begin_file(event.now)
        elif event.now >= self._closed_until:
            self._begin_file(event.now)  # the snapshot knows this event already

    def close(self) -> None:
        """Write what waits; give up on a disk that takes longer than STOP_SECONDS."""
        self._writer.stop(STOP_SECONDS)

    def _begin_file(self, now: float) -> None:
        self._written_bytes = 0
        self.failed.clear()
        taken = self._writer.take(_FirstLine(to_json(self._snapshot())))
        self._closed_until = None if taken else now + RETRY_SECONDS


class _FirstLine(str):
    """The line that begins a new file."""


class _Writer(threading.Thread):
    def __init__(self, folder: Path, files: int, failed: threading.Event) -> None:
        super().__init__(name="journal", daemon=True)
        self._folder, self._files, self._failed = folder, files, failed
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING_LINES)
        self._file: TextIO | None = None

    def take(self, line: str) -> bool:
        """False if too many lines wait already."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            return False
        return True

    def stop(self, timeout_seconds: float) -> None:
        try:
            self._lines.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self.join(timeout_seconds)

    def run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
            except OSError as error:
                log.warning("journal_not_written", error=str(error), retry_seconds=RETRY_SECONDS)
                self._failed.set()
                self._close_file()
        self._close_file()

    def _write(self, line: str) -> None:
        if isinstance(line, _FirstLine):
            self._next_file()
        if self._file is not None:
            self._file.write(line + "\n")
            if self._lines.empty():
                self._file.flush()

    def _next_file(self) -> None:
        self._close_file()
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = journal_files(self._folder)
        number = int(kept[-1].stem) + 1 if kept else 1
        self._file = (self._folder / f"{number:08d}.jsonl").open("x")
        for old in kept[: max(0, len(kept) + 1 - self._files)]:
            old.unlink(missing_ok=True)

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written is lost; the descriptor is closed all the same
                self._file.close()
            self._file = None


def journal_files(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(file for file in folder.glob("*.jsonl") if file.stem.isdigit())


class ReplayDiffers(Exception):
    """The dispatcher now decides otherwise than it did then."""


def replay(file: Path) -> Dispatcher:
    """Make the decisions of one journal file again; the dispatcher as it was at the end. ReplayDiffers if one differs.

    A last line that a crash cut off is left out.
    """
    first, *lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    dispatcher = Dispatcher.restore(read_as(Snapshot, json.loads(first)))
    for number, line in enumerate(lines, start=2):
        recorded = json.loads(line)
        event = from_tagged(recorded["event"], Event)
        then = [from_tagged(effect, Effect) for effect in recorded["effects"]]
        now = dispatcher.step(event)
        if now != then:
            raise ReplayDiffers(f"{file}, line {number}: {event} led to {then}, and now to {now}")
    return dispatcher
