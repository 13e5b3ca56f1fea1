"""Live requests, the lines they wait in, and how fast the lines move. Pure."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field, replace
from typing import Literal

from services.scheduler.pace import Pace
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
    avoid: tuple[InstanceId, ...] = ()  # whose engines failed with it


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


@dataclass(slots=True)
class Drain:
    """How fast the queue empties: counts only the time in which somebody waits and somebody serves."""

    pace: Pace = field(default_factory=Pace)
    interrupted: bool = False  # since the queue was last empty there was a time in which nobody served

    def began(self, now: float) -> None:
        """The queue was empty, and somebody waits."""
        self.pace.began(now)
        self.interrupted = False

    def stopped(self, now: float) -> None:
        """Somebody waits, and nobody serves."""
        self.pace.began(now)
        self.interrupted = True

    def left(self, tokens: int, now: float) -> None:
        """Somebody who waited has been sent on."""
        self.pace.computed(tokens, now)

    @property
    def tokens_per_second(self) -> float:
        """0: nobody has had to wait yet."""
        return self.pace.tokens_per_second

    def copy(self) -> "Drain":
        return replace(self, pace=replace(self.pace))
