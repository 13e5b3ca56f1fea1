"""The traffic as a workload: when requests arrive and how long they are. No text, no client, no request's id."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from services.scheduler.line_files import FirstLine, LineWriter
from shared.specs.ids import RequestId

MOST_UNENDED = 20_000  # arrivals that wait for their end
FILE_BYTES = 8 << 20
FILES = 8  # about a million requests
RETRY_SECONDS = 10.0
STOP_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been served: a line of a trace."""

    arrival_s: float  # unix time
    input_len: int
    output_len: int


class Listener(Protocol):
    """Somebody who wants to know of the traffic. Must not wait."""

    def arrived(self, at: float, input_len: int) -> None: ...

    def served(self, call: Call) -> None: ...


class Traffic:
    """Joins the arrival of a request with its end, and tells those who listen. Pure: times are given.

    Who gets no token (refused, given up before, failed) is no call: nobody knows how long its answer would have been.
    What arrived at an earlier scheduler is left out.
    """

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners
        self._arrivals: dict[RequestId, float] = {}  # oldest first

    def arrived(self, request: RequestId, attempt: int, input_len: int, at: float) -> None:
        if attempt > 0 or request in self._arrivals or not self._listeners:
            return
        self._arrivals[request] = at
        if len(self._arrivals) > MOST_UNENDED:
            del self._arrivals[next(iter(self._arrivals))]
        for listener in self._listeners:
            listener.arrived(at, input_len)

    def ended(self, request: RequestId, input_len: int, output_len: int) -> None:
        at = self._arrivals.pop(request, None)
        if at is None or input_len < 1 or output_len < 1:
            return
        call = Call(at, input_len, output_len)
        for listener in self._listeners:
            listener.served(call)


class TrafficRecorder:
    """Writes down what was served, in order of its end. Never waits and never fails: lines may be lost instead."""

    def __init__(self, folder: Path, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        """Keeps the newest `files` files of about `file_bytes` bytes in `folder`."""
        self._writer = LineWriter("traffic", folder, files)
        self._writer.start()
        self._file_bytes = file_bytes
        self._written_bytes = file_bytes  # the first line begins a file
        self._retry_at: float | None = None  # by the clock of the arrivals

    def arrived(self, at: float, input_len: int) -> None:
        if self._writer.failed.is_set() and self._retry_at is None:
            self._retry_at = at + RETRY_SECONDS
        elif self._retry_at is not None and at >= self._retry_at:
            self._writer.failed.clear()
            self._retry_at = None
            self._written_bytes = self._file_bytes

    def served(self, call: Call) -> None:
        line = json.dumps(asdict(call))
        if self._written_bytes >= self._file_bytes:
            self._written_bytes = 0
            line = FirstLine(line)
        self._written_bytes += len(line)
        self._writer.take(line)

    def close(self) -> None:
        """Write what waits; give up on a disk that takes longer than STOP_SECONDS."""
        self._writer.stop(STOP_SECONDS)
