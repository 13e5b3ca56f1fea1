"""Scheduler -> instance: start a stage. Requests with an answer, idempotent by (request, attempt).

Refused ("deposed") if the instance has heard of a leader in a later term: a scheduler that was stopped and wakes up.
"""

from typing import ClassVar

from shared.messages.handoff import KvHandle
from shared.messages.requests import SubmitRequest
from shared.specs.ids import RequestId
from shared.specs.record import Record


class StartPrefill(Record, frozen=True, kw_only=True):
    """Compute the KV of the context and the first token; hold the KV until it is released or its lease ends."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.start"
    work: SubmitRequest
    term: int = 0  # in which the sender leads


class StartDecode(Record, frozen=True, kw_only=True):
    """Go on from `kv`: pull it when there is room, then one token a step. Without `kv`: prefill here (colocated)."""

    SUBJECT: ClassVar[str] = "ds.v1.decode.{instance}.start"
    work: SubmitRequest
    kv: KvHandle | None = None
    term: int = 0  # in which the sender leads


class Started(Record, frozen=True, kw_only=True):
    """Taken into the instance's queue (or already there)."""

    request: RequestId
    attempt: int
