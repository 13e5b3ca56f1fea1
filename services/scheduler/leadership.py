"""Which scheduler leads. Pure: what the store answered, what the beats say and the time go in.

The lease is one key of the bus's store with a time to live. Who creates it leads, in a term made of that revision:
terms grow, and no two leaders share one. The leader renews it by compare-and-set, and takes itself for the leader only
as long as the store surely keeps the lease. It is deposed when somebody else has the key, or when another scheduler
leads in a later term. If any other instance has heard of a later term, which it will not let go of (the store has been
emptied, or was away), the leader goes on in one that is later still, from its next renewal: no instance can depose it.

The store may be away while the bus is there. Nobody can take the lease from the leader then, so it goes on for as long
as it keeps finding the store away. If nobody leads, the scheduler with the first name of those heard takes over, in the
term after the last one known; that is a convention, not a guarantee, and ends when the store is back.
"""

from dataclasses import dataclass

from shared.specs.ids import InstanceId

RENEWALS_PER_LEASE = 4
TERMS_PER_REVISION = 16  # those between are for when the store is away
TRIES_PER_LEASE = 12  # of who does not have it
MOST_AHEAD = 1 << 32  # of the last term of a scheduler: years of renewals. What others claim is believed up to there


@dataclass(frozen=True, slots=True)
class Attempt:
    """What to ask the store now: renew the lease at `revision`; None: create it."""

    revision: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """The lease was written, at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class Taken:
    """It was not written: `holder` has it, at `revision`."""

    holder: InstanceId
    revision: int


@dataclass(frozen=True, slots=True)
class Free:
    """It was not written, and is not there either: its time was over."""


@dataclass(frozen=True, slots=True)
class Away:
    """The store could not be asked, or did not answer: the write may still have happened."""


Outcome = Held | Taken | Free | Away


class Leadership:
    """One scheduler's view. Drive it with `attempt` and `answered`, one at a time, and tell it what is `heard`."""

    def __init__(self, me: InstanceId, lease_seconds: float, now: float) -> None:
        self.term = 0  # in which we lead, or led until we heard otherwise; 0: we do not
        self._me, self._lease_seconds = me, lease_seconds
        self._revision: int | None = None  # of our lease
        self._sure_until = float("-inf")
        self._latest_term = 0  # of any scheduler
        self._claimed_term = 0  # what others have heard of
        self._schedulers: dict[InstanceId, float] = {}  # others, and when they were last heard
        self._quiet_since = now  # no other leader was heard, and the store did not answer
        self._try_at = now
        self._asked_at: float | None = None

    def leads(self, now: float) -> bool:
        """Whether to act as the leader at this moment."""
        return self.term != 0 and now < self._sure_until

    def next_attempt_at(self) -> float:
        return self._try_at

    def attempt(self, now: float) -> Attempt | None:
        """What to ask the store, if it is time for that. `answered` must follow."""
        if self._asked_at is not None or now < self._try_at:
            return None
        self._asked_at = now
        return Attempt(self._revision)

    def answered(self, outcome: Outcome, now: float) -> None:
        asked_at, self._asked_at = self._asked_at, None
        assert asked_at is not None, "nothing was asked"
        match outcome:
            case Held():
                self._note_held(outcome.revision, asked_at, now)
            case Taken() if outcome.holder == self._me:  # the answer to an earlier write was lost
                self._revision, self._try_at = outcome.revision, now
            case Taken():
                self._step_down()
                self._quiet_since = now
                self._try_at = now + self._lease_seconds / TRIES_PER_LEASE
            case Free():
                self._revision, self._try_at = None, now
            case Away():
                self._note_away(asked_at, now)

    def heard(self, instance: InstanceId, term: int, now: float, *, is_scheduler: bool) -> None:
        """A beat: a scheduler's, with the term in which it leads, or another's, with the latest that it knows of."""
        if not is_scheduler:
            self._claimed_term = max(self._claimed_term, min(term, self._latest_term + MOST_AHEAD))
            return
        if instance != self._me:
            self._schedulers[instance] = now
            if term:
                self._quiet_since = now
        self._latest_term = max(self._latest_term, term)
        if self.term and term > self.term:
            self._step_down()
            self._try_at = now

    def deaf(self, now: float) -> None:
        """There is no connection to the bus: nobody can be heard or asked, and nobody's silence counts."""
        self._quiet_since = self._try_at = now
        if self.leads(now):
            self._sure_until = now + self._lease_seconds

    def _note_held(self, revision: int, asked_at: float, now: float) -> None:
        if (
            now >= asked_at + self._lease_seconds
        ):  # we were stopped meanwhile: what it was worth, the next attempt tells
            self._revision, self._try_at = revision, now
            return
        if self._revision is None or self.term == 0 or self.term < self._claimed_term:
            self._begin_term(revision * TERMS_PER_REVISION)
        self._revision = revision
        self._sure_until = asked_at + self._lease_seconds
        self._quiet_since = asked_at
        self._try_at = asked_at + self._lease_seconds / RENEWALS_PER_LEASE

    def _note_away(self, asked_at: float, now: float) -> None:
        self._try_at = now + self._lease_seconds / TRIES_PER_LEASE
        if self.term and asked_at < self._sure_until:
            self._sure_until = asked_at + self._lease_seconds
            if self.term < self._claimed_term:
                self._begin_term()
        elif now - self._quiet_since > self._lease_seconds and self._is_first_of_those_heard(now):
            self._begin_term()
            self._revision = None
            self._sure_until = asked_at + self._lease_seconds

    def _begin_term(self, at_least: int = 0) -> None:
        self.term = self._latest_term = max(at_least, self._latest_term + 1, self._claimed_term + 1)

    def _is_first_of_those_heard(self, now: float) -> bool:
        others = [name for name, heard_at in self._schedulers.items() if now - heard_at <= self._lease_seconds]
        return all(self._me < other for other in others)

    def _step_down(self) -> None:
        self.term, self._revision, self._sure_until = 0, None, float("-inf")
