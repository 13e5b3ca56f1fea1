"""What the beats of the parts mean to the person who started them. Pure: times are given."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from shared.messages.instances import Beat, Link
from shared.specs.ids import InstanceId, Role

SILENT_SECONDS = 4.0  # three beats missed and the fourth overdue


@dataclass(frozen=True, slots=True)
class BecameReady:
    role: Role
    instance: InstanceId
    count: int  # instances of the role that are ready now, this one included
    wanted: int


@dataclass(frozen=True, slots=True)
class NotReady:
    instance: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class Silent:
    instance: InstanceId


@dataclass(frozen=True, slots=True)
class LinkTested:
    instance: InstanceId
    link: Link


Notice = BecameReady | NotReady | Silent | LinkTested


class Readiness:
    """The instances that beat, and how many of each role are wanted."""

    def __init__(self, wanted: Mapping[Role, int]) -> None:
        self._wanted = dict(wanted)
        self._leaving: Counter[Role] = Counter()  # asked to go, and still heard of a moment ago
        self._beats: dict[InstanceId, tuple[Beat, float]] = {}

    def want(self, role: Role, count: int) -> None:
        """From now on. If that is fewer, the next ones to fall silent were asked to."""
        self._leaving[role] += max(0, self._wanted.get(role, 0) - count)
        self._wanted[role] = count

    def heard(self, beat: Beat, now: float) -> list[Notice]:
        """Take a beat in; what is new in it."""
        before, _ = self._beats.get(beat.instance, (None, now))
        if before is not None and beat.number <= before.number:
            return []
        self._beats[beat.instance] = (beat, now)
        notices: list[Notice] = []
        if beat.ready and not (before and before.ready):
            notices.append(
                BecameReady(beat.role, beat.instance, self._count(beat.role), self._wanted.get(beat.role, 0))
            )
        elif not beat.ready and beat.detail and beat.detail != (before.detail if before else ""):
            notices.append(NotReady(beat.instance, beat.detail))
        known = {link.peer: link for link in before.links} if before else {}
        notices += [
            LinkTested(beat.instance, link) for link in beat.links if _verdict_changed(known.get(link.peer), link)
        ]
        return notices

    def sweep(self, now: float) -> list[Notice]:
        """Forget the instances that have fallen silent, and say which, but for those that were asked to go."""
        silent = [beat for beat, seen in self._beats.values() if now - seen >= SILENT_SECONDS]
        notices: list[Notice] = []
        for beat in silent:
            del self._beats[beat.instance]
            if self._leaving[beat.role]:
                self._leaving[beat.role] -= 1
            else:
                notices.append(Silent(beat.instance))
        return notices

    def missing(self) -> dict[Role, int]:
        """How many instances of which role are not ready yet."""
        return {role: wanted - ready for role, wanted in self._wanted.items() if (ready := self._count(role)) < wanted}

    def _count(self, role: Role) -> int:
        return sum(beat.role == role and beat.ready and not beat.draining for beat, _ in self._beats.values())


def _verdict_changed(known: Link | None, link: Link) -> bool:
    return known is None or (known.ok, known.transport, known.detail) != (link.ok, link.transport, link.detail)
