"""What can happen to a request, and what must then be done about it."""

from dataclasses import dataclass

from services.gateway.errors import ApiError
from shared.messages.requests import Accepted, Outcome, Refused
from shared.messages.tokens import RequestInterrupted, TokenRow

# --- events, besides the messages Accepted, Refused, TokenRow and RequestInterrupted


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Nobody answered the submission of this attempt. It may have arrived."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Every instance was asked about this attempt, and what they know was fed as rows. `known`: one of them has it."""

    attempt: int
    known: bool


@dataclass(frozen=True, slots=True)
class StopFound:
    """The text reached a stop string; the answer has `tokens` tokens."""

    tokens: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The client is gone, time is up, or the gateway ends. `error` is what the client is told, if it can still hear."""

    error: ApiError
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SchedulerChanged:
    """Another scheduler leads than before. It may not know what waited at the one before it."""


Event = Accepted | Refused | TokenRow | RequestInterrupted | Unanswered | Asked | StopFound | GivenUp | SchedulerChanged

# --- effects


@dataclass(frozen=True, slots=True)
class Submit:
    """Send `RequestLife.work()`, after a pause; unless the attempt is another one by then."""

    attempt: int
    pause_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the workers what they know of this request."""


@dataclass(frozen=True, slots=True)
class News:
    """There are new tokens, the request was taken, or it has ended: whoever answers the client should look."""


@dataclass(frozen=True, slots=True)
class Ended:
    """It is over. `abort`: somebody may still be working on it. `taken`: the scheduler ever had it."""

    abort: bool
    taken: bool


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended. Kept with it, for whoever answers the client."""

    outcome: Outcome
    output_tokens: int
    error: ApiError | None = None  # what the client is told, unless the outcome is stop or length


Effect = Submit | Ask | News | Ended
