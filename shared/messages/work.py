"""Scheduler -> instance: start a stage. Requests with an answer, idempotent by (request, attempt)."""

from dataclasses import dataclass
from typing import ClassVar

from shared.messages.handoff import KvHandle
from shared.messages.requests import SubmitRequest
from shared.specs.ids import RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPrefill:
    """Compute the KV of the context and the first token; hold the KV until it is released or its lease ends."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.start"
    work: SubmitRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class StartDecode:
    """Go on from `kv`: pull it when there is room, then one token a step. Without `kv`: prefill here (colocated)."""

    SUBJECT: ClassVar[str] = "ds.v1.decode.{instance}.start"
    work: SubmitRequest
    kv: KvHandle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Taken into the instance's queue (or already there)."""

    request: RequestId
    attempt: int
