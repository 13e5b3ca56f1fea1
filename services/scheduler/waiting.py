"""Live requests, the lines they wait in, and how fast the lines move. Pure."""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Literal

from shared.specs.ids import InstanceId, RequestId

NOBODY = InstanceId("")
Stage = Literal[
    "queued",  # here, for a prefill (or colocated) instance
    "prefilling",
    "kv_waiting",  # its KV is held at `source`; it waits here for a decode instance
    "decoding",
]


@dataclass(slots=True)
class Live:
    """A request that has not ended, and who has it."""

    request: RequestId
    attempt: int
    gateway: InstanceId  # NOBODY: known from an instance's beat only
    model: str
    context_tokens: int
    final_tokens: int
    resumed: bool  # taken on before: it neither waits behind new requests nor is refused for a full queue
    sequence: int  # order of arrival
    since: float  # when it began to wait, or when its holder last confirmed it
    stage: Stage = "queued"
    holder: InstanceId = NOBODY  # the instance that has it, or has just been sent it
    source: InstanceId = NOBODY  # where its KV came from
    started: bool = False  # the holder has answered


class Lines:
    """Waiting requests, a line per name (a model, or who holds the KV): resumed ones first, then by arrival."""

    def __init__(self) -> None:
        self._lines: dict[str, list[tuple[bool, int, RequestId]]] = {}
        self.requests = 0
        self.tokens = 0

    def add(self, name: str, live: Live) -> None:
        insort(self._lines.setdefault(name, []), _place(live))
        self.requests += 1
        self.tokens += live.context_tokens

    def remove(self, name: str, live: Live) -> None:
        line = self._lines[name]
        index = bisect_left(line, _place(live))
        assert line[index][2] == live.request, f"{live.request} is not in line {name!r}"
        del line[index]
        if not line:
            del self._lines[name]
        self.requests -= 1
        self.tokens -= live.context_tokens

    def first(self, skip: set[str]) -> tuple[str, RequestId] | None:
        """The one whose turn it is, with its line, over all lines but those in `skip`."""
        if not self._lines:
            return None
        heads = [(line[0], name) for name, line in self._lines.items() if name not in skip]
        if not heads:
            return None
        (_, _, request), name = min(heads)
        return name, request

    def names(self) -> list[str]:
        return sorted(self._lines)

    def head(self, name: str) -> RequestId | None:
        line = self._lines.get(name)
        return line[0][2] if line else None

    def members(self, name: str) -> list[RequestId]:
        return [request for _, _, request in self._lines[name]]


def _place(live: Live) -> tuple[bool, int, RequestId]:
    return (not live.resumed, live.sequence, live.request)


class DrainRate:
    """Tokens per second that left the queue over the last seconds."""

    WINDOW_SECONDS = 10

    def __init__(self, departures: tuple[tuple[int, int], ...] = ()) -> None:
        window = self.WINDOW_SECONDS + 1
        self._departures = deque(([second, tokens] for second, tokens in departures), maxlen=window)  # whole seconds
        self._latest = self._departures[-1] if self._departures else [-1, 0]

    def note(self, tokens: int, now: float) -> None:
        second = int(now)
        if self._latest[0] != second:
            self._latest = [second, 0]
            self._departures.append(self._latest)
        self._latest[1] += tokens

    def tokens_per_second(self, now: float) -> float:
        """0 if nothing has left lately."""
        recent = [(second, tokens) for second, tokens in self._departures if second > now - self.WINDOW_SECONDS - 1]
        if not recent:
            return 0.0
        return sum(tokens for _, tokens in recent) / max(1.0, now - recent[0][0])

    @property
    def departures(self) -> tuple[tuple[int, int], ...]:
        return tuple((second, tokens) for second, tokens in self._departures)
