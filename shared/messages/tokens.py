"""Workers -> gateway: tokens, ends and interruptions; and how a gateway gets what it missed."""

from typing import ClassVar, Literal

from shared.specs.ids import InstanceId, RequestId
from shared.specs.record import Number, Record

Finish = Literal["stop", "length", "aborted"]


class TokenLogprobs(Record, frozen=True, kw_only=True):
    """Natural-log probabilities at one position, after temperature 1 softmax of the raw logits."""

    token: Number
    top: tuple[tuple[int, Number], ...] = ()  # (token id, log-probability), most likely first


class TokenRow(Record, frozen=True, kw_only=True):
    """What one request got. `index` counts generated tokens over all attempts, so a gap or a repeat is seen at once."""

    request: RequestId
    attempt: int
    index: int  # of tokens[0] within the answer
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # empty, or one per token
    finish: Finish | None = None  # with "stop" the last token is the stop token


class Sealed(Record, frozen=True, kw_only=True):
    """A TokenBatch or ResumedTokens that only the gateway it is for can open (`shared.messages.sealed`)."""

    SUBJECT: ClassVar[str] = "ds.v1.tokens.{gateway}"
    box: bytes


class TokenBatch(Record, frozen=True, kw_only=True):
    """One message per engine step and gateway. `step` counts this source's messages to this gateway from 0. Sealed."""

    source: InstanceId
    step: int
    rows: tuple[TokenRow, ...]


class RequestInterrupted(Record, frozen=True, kw_only=True):
    """Scheduler or worker -> gateway: its holder is lost, full or broken; submit it again with what you have.

    Every gateway can read it: no reason tells anything of a prompt or an answer.
    """

    SUBJECT: ClassVar[str] = "ds.v1.tokens.{gateway}"
    request: RequestId
    attempt: int
    reason: str
    failed_at: InstanceId | None = None  # whose engine failed with it


class Want(Record, frozen=True, kw_only=True):
    request: RequestId
    attempt: int
    next_index: int


class ResumeTokens(Record, frozen=True, kw_only=True):
    """Gateway -> one instance: what do you know of these, from these indices on?"""

    SUBJECT: ClassVar[str] = "ds.v1.{role}.{instance}.resume"
    gateway: InstanceId
    wants: tuple[Want, ...]


class ResumedTokens(Record, frozen=True, kw_only=True):
    """One row for every wanted request this instance holds or held (tokens may be empty); the rest are unknown to it.

    A long row may end before all that is known is told: whoever misses the rest asks again. Sealed, if it has rows.
    """

    source: InstanceId
    rows: tuple[TokenRow, ...]
