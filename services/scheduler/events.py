"""What the dispatcher is told and what it asks for: bare facts, alike in live traffic, simulation and replay.

`now` is monotonic seconds of whoever drives the dispatcher. Token ids never come here: the driver keeps the work itself
by (request, attempt) and attaches it when it carries an effect out.
"""

from typing import Literal

import msgspec

from shared.messages.instances import Capacity, Load
from shared.messages.requests import RefusalReason
from shared.specs.ids import InstanceId, RequestId, Role

StartAnswer = Literal[
    "started",
    "full",  # not now: its queue is full, it is going away, or it is not ready
    "rejected",  # not this request, now or later
    "unreachable",  # it was never asked: nobody listens, or we have no connection
    "unanswered",  # it may have the request, or not
]
InstanceState = Literal["ready", "not_ready", "draining", "lost"]


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Nobody changes it, and no cycle of references leads through it.

    A simulation makes nine of them for each request: a dataclass takes three times as long to make.
    """


class Submitted(Fact, frozen=True):
    now: float
    request: RequestId
    attempt: int
    gateway: InstanceId
    model: str
    context_tokens: int  # to be computed before its next token
    final_tokens: int  # the most it can ever hold
    resumed: bool  # its client has tokens of an earlier attempt
    avoid: tuple[InstanceId, ...] = ()  # where it failed
    within_seconds: float = 0.0  # refuse it if its first token will not come in time; 0: whenever it comes


class StartAnswered(Fact, frozen=True):
    """What came of a SendPrefill or SendDecode. Every one of them is answered exactly once."""

    now: float
    instance: InstanceId
    request: RequestId
    attempt: int
    answer: StartAnswer


class KvComputed(Fact, frozen=True):
    now: float
    request: RequestId
    attempt: int
    gateway: InstanceId
    model: str
    context_tokens: int
    final_tokens: int
    source: InstanceId
    avoid: tuple[InstanceId, ...] = ()  # where it failed


class KvLost(Fact, frozen=True):
    """Its lease ended before a decode instance came for it."""

    now: float
    request: RequestId
    attempt: int
    source: InstanceId


class Ended(Fact, frozen=True):
    now: float
    request: RequestId
    attempt: int


class Aborted(Fact, frozen=True):
    """Its gateway has told everybody to stop working on attempts up to this one."""

    now: float
    request: RequestId
    attempt: int


class BeatHeard(Fact, frozen=True):
    now: float
    instance: InstanceId
    role: Role
    number: int
    model: str = ""
    ready: bool = True
    draining: bool = False
    colocated: bool = False
    kv_format: str = ""
    capacity: Capacity = Capacity()
    load: Load = Load()
    linked: tuple[InstanceId, ...] = ()  # peers that its transfer self-test found good
    requests: tuple[tuple[RequestId, int], ...] = ()  # (request, attempt) it answers for


class Ticked(Fact, frozen=True):
    """A few times a second, as long as beats could be heard."""

    now: float


class Closing(Fact, frozen=True):
    """This scheduler goes away: what waits here is to find another one."""

    now: float


class Deposed(Fact, frozen=True):
    """Another scheduler leads: what no instance has taken from us is none of our business any more."""

    now: float


Event = Submitted | StartAnswered | KvComputed | KvLost | Ended | Aborted | BeatHeard | Ticked | Closing | Deposed


class Accept(Fact, frozen=True):
    request: RequestId
    attempt: int


class Refuse(Fact, frozen=True):
    request: RequestId
    attempt: int
    reason: RefusalReason
    message: str
    retry_after_seconds: float = 0.0  # 0: trying again will not help


class SendPrefill(Fact, frozen=True):
    instance: InstanceId
    request: RequestId
    attempt: int


class SendDecode(Fact, frozen=True):
    instance: InstanceId
    request: RequestId
    attempt: int
    source: InstanceId | None  # whose KV it pulls; None: it prefills by itself


class Interrupt(Fact, frozen=True):
    """Give the request back to its gateway. `wanted`: the gateway gave it up, and hears that nobody works on it."""

    gateway: InstanceId
    request: RequestId
    attempt: int
    reason: str
    wanted: bool = False


class Abort(Fact, frozen=True):
    """Tell every instance to stop working on attempts up to this one."""

    request: RequestId
    attempt: int


class ReleaseKv(Fact, frozen=True):
    source: InstanceId
    request: RequestId
    attempt: int


class RenewKv(Fact, frozen=True):
    source: InstanceId
    requests: tuple[tuple[RequestId, int], ...]


class Forget(Fact, frozen=True):
    """This attempt is over for the dispatcher: nothing more will be asked for it."""

    request: RequestId
    attempt: int


class ReportInstance(Fact, frozen=True):
    """An instance appeared or changed its state: for the log."""

    instance: InstanceId
    state: InstanceState


Effect = Accept | Refuse | SendPrefill | SendDecode | Interrupt | Abort | ReleaseKv | RenewKv | Forget | ReportInstance
