"""What was out when, and which troubles of its clients that excuses. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cli.chaos.schedule import Fault

# How long what is there again may go on refusing: its next beat (1 s) or its next try to connect has to come first.
# Breaks get it for the client's own lateness: it reads 32 streams on a machine that the whole stack shares.
GRACE_SECONDS = 2.0

How = Literal["killed", "stopped", "restarted", "cut", "hung", "disk full", "overloaded"]
Stage = Literal["unanswered", "refused", "broken"]  # no status came; 429 or 503 came; 200 came, but not all of the rest
TAKEN_AWAY = ("killed", "stopped", "restarted", "hung")


@dataclass(slots=True, eq=False)
class Outage:
    """Of one part: until it, or the one that takes its place, is there again. Seconds after the start of the load."""

    fault: Fault
    part: str
    how: How
    began_at: float
    ended_at: float = float("inf")

    @property
    def name(self) -> str:
        return f"{self.part} {self.how}"

    def overlaps(self, begin: float, end: float) -> bool:
        return self.began_at <= end and begin <= self.ended_at + GRACE_SECONDS


@dataclass(slots=True, eq=False)
class Trouble:
    """One try of a client that brought no whole answer, so that it had to come again."""

    gateway: str
    asked_at: float
    at: float
    stage: Stage
    what: str
    events: int = 0  # that had come
    cause: Outage | None = None  # what excuses it
    around: Sequence[str] = ()  # all that was out meanwhile

    def told(self) -> str:
        out = ", ".join(self.around) or "nothing"
        return (
            f"{self.at:.1f} s: {self.gateway} {self.stage} after {self.events} events, asked at {self.asked_at:.1f} s: "
            f"{self.what}; out meanwhile: {out}"
        )

    def json(self) -> dict[str, Any]:
        return {
            "at": round(self.at, 2),
            "asked_at": round(self.asked_at, 2),
            "gateway": self.gateway,
            "stage": self.stage,
            "what": self.what,
            "events": self.events,
            "excused_by": self.cause.name if self.cause else None,
            "out_meanwhile": list(self.around),
        }


def judge(troubles: Iterable[Trouble], outages: Sequence[Outage], roles: Mapping[str, Sequence[str]]) -> None:
    """Note what was out, and what of it is an excuse. `roles`: the parts of each."""
    for trouble in troubles:
        trouble.around = [one.name for one in outages if one.overlaps(trouble.asked_at, trouble.at)]
        trouble.cause = _refused(trouble, outages, roles) if trouble.stage == "refused" else _broken(trouble, outages)


def _broken(trouble: Trouble, outages: Sequence[Outage]) -> Outage | None:
    """By its gateway's death. One that is told to end takes no more calls, but ends the answers that it has begun; one
    that is stopped, or has lost the bus, keeps its connections."""
    excuses = ("killed",) if trouble.stage == "broken" else ("killed", "restarted")
    found = [one for one in outages if one.part == trouble.gateway and one.how in excuses]
    return next((one for one in found if one.overlaps(trouble.at, trouble.at)), None)


def _refused(trouble: Trouble, outages: Sequence[Outage], roles: Mapping[str, Sequence[str]]) -> Outage | None:
    """If at one moment of the try its gateway could not reach the bus, or a role had nobody left (the bus is one); or
    with 429 if there were too many clients."""
    began = [one.began_at for one in outages if trouble.asked_at <= one.began_at <= trouble.at]
    for moment in (trouble.asked_at, *began):
        out = {one.part: one for one in outages if one.how in TAKEN_AWAY and one.overlaps(moment, moment)}
        crowd = [one for one in outages if one.how == "overloaded" and one.overlaps(moment, moment)]
        if crowd and trouble.what.startswith("429"):
            return crowd[0]
        link = out.get(trouble.gateway)
        if link is not None and link.how == "hung":
            return link
        for parts in roles.values():
            if parts and out.keys() >= set(parts):
                return max((out[part] for part in parts), key=lambda one: one.began_at)
    return None
