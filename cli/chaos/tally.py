"""What the faults did to the streams, one row for each kind. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil

from cli.chaos.outages import Trouble
from cli.chaos.schedule import Fault

NOTICEABLE_SECONDS = 1.0  # a pause of an answer that its reader notices
UNDISTURBED_SECONDS = 8.0  # after a fault without another one: then it alone decides how long recovery takes


@dataclass(slots=True)
class Story:
    """One call of one client, from its first try to its end. Times are seconds after the start of the load."""

    began_at: float
    tokens_at: list[float] = field(default_factory=list)  # when events of the answer came, over all its connections
    troubles: list[Trouble] = field(default_factory=list)  # after each of them it came again
    ended_at: float = float("inf")
    left: bool = False  # on purpose
    wrong: str = ""
    lost: int = 0
    repeated: int = 0

    @property
    def longest_silence(self) -> float:
        """Seconds in which nothing came, of an answer that came to its end."""
        if self.left or self.wrong:
            return 0.0
        return max(later - earlier for earlier, later in pairwise((self.began_at, *self.tokens_at, self.ended_at)))


@dataclass(slots=True)
class Row:
    """Affected: streams that were open when it happened and then stood still for NOTICEABLE_SECONDS, and calls that
    it broke or had refused. Recovery lasts from the fault to the next token; it is timed for those faults that had
    UNDISTURBED_SECONDS to themselves.
    """

    name: str
    times: int = 0
    affected: int = 0
    came_again: int = 0  # of those: over a new connection, as theirs was broken or refused
    recovered: int = 0
    seconds: list[float] = field(default_factory=list)
    lost: int = 0
    repeated: int = 0

    def percentile(self, share: float) -> float | None:
        """Seconds; None if nobody had to recover."""
        ordered = sorted(self.seconds)
        return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def tally(faults: Sequence[Fault], stories: Iterable[Story]) -> list[Row]:
    stories = list(stories)
    rows: dict[str, Row] = {}
    for number, fault in enumerate(faults):
        until = faults[number + 1].at if number + 1 < len(faults) else float("inf")
        row = rows.setdefault(fault.name, Row(fault.name))
        row.times += 1
        is_timed = until - fault.at - fault.seconds >= UNDISTURBED_SECONDS
        for story in stories:
            recovery = _count(row, story, fault, until)
            if recovery is not None and is_timed:
                row.seconds.append(recovery)
    return sorted(rows.values(), key=lambda row: row.name)


def _count(row: Row, story: Story, fault: Fault, until: float) -> float | None:
    """Count the story in, if the fault affected it; how long it took to recover."""
    at = fault.at
    if story.wrong and at <= story.ended_at < until:
        row.lost += story.lost
        row.repeated += story.repeated
    if story.left:
        return None
    troubled_at = next((one.at for one in story.troubles if _comes_of(one, fault, until)), None)
    was_open = story.began_at <= at < story.ended_at
    if troubled_at is None and not was_open:
        return None
    after = at if troubled_at is None else troubled_at
    next_at = next((when for when in story.tokens_at if when > after), story.ended_at)
    last_at = max((when for when in story.tokens_at if when <= at), default=at)
    stood_still_before = at - last_at >= NOTICEABLE_SECONDS
    if troubled_at is None and (next_at - at < NOTICEABLE_SECONDS or stood_still_before):
        return None
    row.affected += 1
    row.came_again += troubled_at is not None
    if story.wrong:
        return None
    row.recovered += 1
    return next_at - at


def _comes_of(trouble: Trouble, fault: Fault, until: float) -> bool:
    """What nothing explains is counted with the last fault before it."""
    return trouble.cause.fault == fault if trouble.cause else fault.at <= trouble.at < until
