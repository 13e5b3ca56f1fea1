"""Who leads the schedulers, as their beats tell it, and whose commands are out of date. Pure."""

from shared.messages.instances import Beat
from shared.specs.ids import InstanceId


class Terms:
    """The latest term of leadership that was heard of. Terms only grow."""

    def __init__(self) -> None:
        self.latest = 0
        self._leader: InstanceId | None = None
        self._leader_term = 0

    def heard(self, beat: Beat) -> bool:
        """True: the leader is another scheduler than the one before, and may not know what that one knew."""
        if beat.role != "scheduler" or beat.term <= self._leader_term:
            return False
        changed = beat.instance != self._leader
        self._leader, self._leader_term = beat.instance, beat.term
        self.latest = max(self.latest, beat.term)
        return changed

    def admits(self, term: int) -> bool:
        """Whether to obey a command of this term: not if a later leader has been heard of."""
        if term < self.latest:
            return False
        self.latest = term
        return True
