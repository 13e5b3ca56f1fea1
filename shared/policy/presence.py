"""Who is still there: an instance that has not been heard for a while is lost."""

from shared.specs.ids import InstanceId


class Presence:
    """Remembers when each instance was last heard. Times are monotonic seconds given by the caller."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._last: dict[InstanceId, float] = {}

    def __contains__(self, instance: InstanceId) -> bool:
        return instance in self._last

    def heard(self, instance: InstanceId, now: float) -> None:
        self._last[instance] = now

    def pardon(self, now: float) -> None:
        """Nobody could be heard until now: nobody's silence counts."""
        self._last = dict.fromkeys(self._last, now)

    def lost(self, now: float) -> list[InstanceId]:
        """Those that have been silent for too long; each is reported once."""
        gone = [instance for instance, last in self._last.items() if now - last > self._limit]
        for instance in gone:
            del self._last[instance]
        return gone
