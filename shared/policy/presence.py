"""Who is still there: an instance that has not been heard for a while is lost, unless it is we who hear nothing."""

from shared.specs.ids import InstanceId

DEAF_SECONDS = 1.9  # less than anybody's silence may last after its last beat, which may be one second older than ours


class Presence:
    """Remembers when each instance was last heard. Times are monotonic seconds given by the caller."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._last: dict[InstanceId, float] = {}

    def __contains__(self, instance: InstanceId) -> bool:
        return instance in self._last

    def heard(self, instance: InstanceId, now: float) -> None:
        self._last[instance] = now

    def expect(self, instance: InstanceId, now: float) -> None:
        """Others speak of it: should it never be heard, it is lost too. That it is alive only it can say itself."""
        self._last.setdefault(instance, now)

    def pardon(self, now: float) -> None:
        """Nobody could be heard until now: nobody's silence counts."""
        self._last = dict.fromkeys(self._last, now)

    def lost(self, now: float) -> list[InstanceId]:
        """Those that have been silent for too long; each is reported once."""
        gone = [instance for instance, last in self._last.items() if now - last > self._limit]
        for instance in gone:
            del self._last[instance]
        return gone


class Echo:
    """Whether our own beats come back to us. If not, it is us, or the bus, and nobody else's silence counts.

    A bus may be deaf with its connections open: a server that hangs, a network that swallows. Times are monotonic
    seconds given by the caller.
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None

    def heard(self, now: float) -> bool:
        """One of ours came back. True if we were deaf until now."""
        was_deaf = self.deaf(now)
        self._heard_at = now
        return was_deaf

    def deaf(self, now: float) -> bool:
        """Not before the first one was heard: until then nothing is known of the bus."""
        return self._heard_at is not None and now - self._heard_at > DEAF_SECONDS
