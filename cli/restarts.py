"""When a part that died is started again, and when it is not. Pure: times are given."""

from dataclasses import dataclass

from shared.specs.settings import MISCONFIGURED

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
STABLE_SECONDS = 30.0  # a part that ran this long is forgiven its earlier deaths
TRIES_AT_START = 3


@dataclass(frozen=True, slots=True)
class RestartAfter:
    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    tries: int


class Restarts:
    """The deaths in a row of one part. Each doubles the wait; before the first success a few of them are the end."""

    def __init__(self) -> None:
        self._deaths_in_a_row = 0

    def died(self, *, status: int, ran_seconds: float, was_ever_served: bool) -> RestartAfter | GiveUp:
        """`was_ever_served`: the whole stack has been ready, so its configuration can work and trying on is right."""
        if ran_seconds >= STABLE_SECONDS:
            self._deaths_in_a_row = 0
        self._deaths_in_a_row += 1
        if not was_ever_served and (status == MISCONFIGURED or self._deaths_in_a_row >= TRIES_AT_START):
            return GiveUp(self._deaths_in_a_row)
        doublings = min(self._deaths_in_a_row - 1, 16)
        return RestartAfter(min(FIRST_WAIT_SECONDS * 2**doublings, LONGEST_WAIT_SECONDS))
