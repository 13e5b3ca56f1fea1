"""Gateway <-> scheduler: work comes in, is taken or refused, is given up, has ended."""

from typing import ClassVar, Literal

from shared.specs.ids import InstanceId, RequestId
from shared.specs.record import Number, Record
from shared.specs.sampling import Sampling

RefusalReason = Literal[
    "queue_full", "no_instance", "too_long", "unknown_model", "draining", "invalid", "deposed", "too_late"
]
SEAL_KEY_BYTES = 32
MOST_AVOIDED = 4
Outcome = Literal["stop", "length", "aborted", "failed"]


class SubmitRequest(Record, frozen=True, kw_only=True):
    """Gateway -> scheduler: run this. Idempotent by (request, attempt); a higher attempt replaces the lower everywhere.

    `generated` holds what the client already has from earlier attempts: it is prefilled like the prompt, and the
    answer goes on at index len(generated).
    """

    SUBJECT: ClassVar[str] = "ds.v1.submit"
    request: RequestId
    attempt: int
    gateway: InstanceId
    model: str
    prompt: tuple[int, ...]
    generated: tuple[int, ...] = ()
    sampling: Sampling
    avoid: tuple[InstanceId, ...] = ()  # the last MOST_AVOIDED whose engines failed with it: elsewhere, if others serve
    first_token_within: Number = 0.0  # seconds; refuse it if its first token will come later; 0: whenever it comes
    seal_key: bytes = b""  # of SEAL_KEY_BYTES, this gateway process's own: what workers tell it is sealed with it

    def __repr__(self) -> str:
        """Neither the key nor the prompt, wherever it may be shown."""
        return f"SubmitRequest({self.request!r}, attempt={self.attempt}, gateway={self.gateway!r})"

    @property
    def context_tokens(self) -> int:
        """Tokens whose KV must exist before the next one can be sampled."""
        return len(self.prompt) + len(self.generated)

    @property
    def final_tokens(self) -> int:
        """The most tokens this sequence can ever hold."""
        return len(self.prompt) + self.sampling.max_tokens


class Accepted(Record, frozen=True, kw_only=True):
    """It is queued or placed; tokens will come to the gateway's own subject."""

    request: RequestId
    attempt: int


class Refused(Record, frozen=True, kw_only=True):
    """Not taken, by the scheduler or by an instance. Nothing is kept of it."""

    request: RequestId
    attempt: int
    reason: RefusalReason
    message: str
    retry_after_seconds: Number = 0.0  # 0: trying again will not help

    @classmethod
    def of(cls, work: SubmitRequest, reason: RefusalReason, message: str) -> "Refused":
        return cls(request=work.request, attempt=work.attempt, reason=reason, message=message)


class AbortRequest(Record, frozen=True, kw_only=True):
    """Gateway -> everyone: stop working on attempts of this request up to and including `attempt`. Idempotent, re-sent
    until a row with finish "aborted" (or any other end) is seen. Broadcast, as the holder may be changing right now."""

    SUBJECT: ClassVar[str] = "ds.v1.abort"
    request: RequestId
    attempt: int


class RequestEnded(Record, frozen=True, kw_only=True):
    """Gateway -> scheduler: what became of a request, as its client saw it."""

    SUBJECT: ClassVar[str] = "ds.v1.scheduler.ended"
    request: RequestId
    attempt: int
    gateway: InstanceId
    outcome: Outcome
    prompt_tokens: int
    output_tokens: int
    ttft_seconds: Number | None  # None: no token ever came
    tpot_seconds: Number | None  # (last - first) / (output_tokens - 1); None below two tokens
