"""What the dispatcher is told and what it asks for: bare facts, alike in live traffic, simulation and replay.

`now` is monotonic seconds of whoever drives the dispatcher. Token ids never come here: the driver keeps the work itself
by (request, attempt) and attaches it when it carries an effect out.
"""

from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    now: float
    request: RequestId
    attempt: int
    gateway: InstanceId
    model: str
    context_tokens: int  # to be computed before its next token
    final_tokens: int  # the most it can ever hold
    resumed: bool  # its client has tokens of an earlier attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAnswered:
    """What came of a SendPrefill or SendDecode. Every one of them is answered exactly once."""

    now: float
    instance: InstanceId
    request: RequestId
    attempt: int
    answer: StartAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class KvComputed:
    now: float
    request: RequestId
    attempt: int
    gateway: InstanceId
    model: str
    context_tokens: int
    final_tokens: int
    source: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLost:
    """Its lease ended before a decode instance came for it."""

    now: float
    request: RequestId
    attempt: int
    source: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    now: float
    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aborted:
    """Its gateway has told everybody to stop working on attempts up to this one."""

    now: float
    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatHeard:
    now: float
    instance: InstanceId
    role: Role
    number: int
    model: str = ""
    ready: bool = True
    draining: bool = False
    colocated: bool = False
    kv_format: str = ""
    capacity: Capacity = field(default_factory=Capacity)
    load: Load = field(default_factory=Load)
    linked: tuple[InstanceId, ...] = ()  # peers that its transfer self-test found good
    requests: tuple[tuple[RequestId, int], ...] = ()  # (request, attempt) it answers for


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """A few times a second, as long as beats could be heard."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """This scheduler goes away: what waits here is to find another one."""

    now: float


Event = Submitted | StartAnswered | KvComputed | KvLost | Ended | Aborted | BeatHeard | Ticked | Closing


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    request: RequestId
    attempt: int
    reason: RefusalReason
    message: str
    retry_after_seconds: float = 0.0  # 0: trying again will not help


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPrefill:
    instance: InstanceId
    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDecode:
    instance: InstanceId
    request: RequestId
    attempt: int
    source: InstanceId | None  # whose KV it pulls; None: it prefills by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """Give the request back to its gateway. `wanted`: the gateway gave it up, and hears that nobody works on it."""

    gateway: InstanceId
    request: RequestId
    attempt: int
    reason: str
    wanted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Tell every instance to stop working on attempts up to this one."""

    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKv:
    source: InstanceId
    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewKv:
    source: InstanceId
    requests: tuple[tuple[RequestId, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """This attempt is over for the dispatcher: nothing more will be asked for it."""

    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInstance:
    """An instance appeared or changed its state: for the log."""

    instance: InstanceId
    state: InstanceState


Effect = Accept | Refuse | SendPrefill | SendDecode | Interrupt | Abort | ReleaseKv | RenewKv | Forget | ReportInstance
