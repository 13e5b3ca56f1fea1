"""Workers -> gateway: tokens, ends and interruptions; and how a gateway gets what it missed."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from shared.specs.ids import InstanceId, RequestId

Finish = Literal["stop", "length", "aborted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Natural-log probabilities at one position, after temperature 1 softmax of the raw logits."""

    token: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """What one request got. `index` counts generated tokens over all attempts, so a gap or a repeat is seen at once."""

    request: RequestId
    attempt: int
    index: int  # of tokens[0] within the answer
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # empty, or one per token
    finish: Finish | None = None  # with "stop" the last token is the stop token


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One message per engine step and gateway. `step` counts this source's messages to this gateway from 0."""

    SUBJECT: ClassVar[str] = "ds.v1.tokens.{gateway}"
    source: InstanceId
    step: int
    rows: tuple[TokenRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInterrupted:
    """Scheduler or worker -> gateway: its holder is lost, full or broken; submit it again with what you have."""

    SUBJECT: ClassVar[str] = "ds.v1.tokens.{gateway}"
    request: RequestId
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    request: RequestId
    attempt: int
    next_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeTokens:
    """Gateway -> one instance: what do you know of these, from these indices on?"""

    SUBJECT: ClassVar[str] = "ds.v1.{role}.{instance}.resume"
    gateway: InstanceId
    wants: tuple[Want, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedTokens:
    """One row for every wanted request this instance holds or held (tokens may be empty); the rest are unknown to it.

    `step` is the next TokenBatch.step for this gateway: batches below it are covered by the rows.
    """

    source: InstanceId
    step: int
    rows: tuple[TokenRow, ...]
