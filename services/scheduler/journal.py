"""What the dispatcher was told and what it decided, one line of JSON each; and the same decisions made again from that.

A file begins with a snapshot of the dispatcher, then has one line per event. So every file can be replayed by itself,
however many before it are deleted. When lines cannot be written, the file ends, and a later one begins with a fresh
snapshot: a file never has a hole.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from services.scheduler.dispatcher import Dispatcher, Snapshot
from services.scheduler.events import Effect, Event
from services.scheduler.line_files import FirstLine, LineWriter
from services.scheduler.plain import from_tagged, read_as, tagged, to_json

RETRY_SECONDS = 10.0
STOP_SECONDS = 3.0


class Journal:
    """Never waits and never fails: a thread writes, as the disk may be slow or full."""

    def __init__(self, folder: Path, *, file_bytes: int, files: int, snapshot: Callable[[], Snapshot]) -> None:
        """Keeps the newest `files` files of about `file_bytes` bytes in `folder`, whoever wrote the older ones."""
        self._file_bytes, self._snapshot = file_bytes, snapshot
        self._writer = LineWriter("journal", folder, files)
        self.failed = self._writer.failed  # lines are thrown away until the next file
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
        taken = self._writer.take(FirstLine(to_json(self._snapshot())))
        self._closed_until = None if taken else now + RETRY_SECONDS


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
