"""Prefill <-> scheduler <-> decode: who holds a prompt's KV, and how it changes hands. KV bytes never ride the bus."""

from typing import ClassVar, Literal

from shared.messages.requests import SubmitRequest
from shared.messages.tokens import TokenLogprobs
from shared.specs.ids import BlockId, InstanceId, RequestId
from shared.specs.record import Number, Record


class KvHandle(Record, frozen=True, kw_only=True):
    """Where a context's KV waits to be pulled, and the first token that was sampled from it."""

    source: InstanceId
    blocks: tuple[BlockId, ...]  # ids in the source's pool, in context order
    tokens: int  # context tokens the blocks hold: prompt + generated of earlier attempts
    lease_seconds: Number  # freed this long after the last KvRenewed
    first_token: int
    first_logprobs: TokenLogprobs | None = None
    secret: bytes = b""  # who shows it was given this handle by the scheduler, and may pull


class KvReady(Record, frozen=True, kw_only=True):
    """Prefill -> scheduler: choose a decode instance. Carries the work: a scheduler without memory can place it."""

    SUBJECT: ClassVar[str] = "ds.v1.scheduler.kv_ready"
    work: SubmitRequest
    kv: KvHandle


class KvNoted(Record, frozen=True, kw_only=True):
    """The scheduler has it and will place it."""

    request: RequestId
    attempt: int


class PullBlocks(Record, frozen=True, kw_only=True):
    """Decode -> prefill: my receives are posted under `transfer`; send these runs of blocks, in this order."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.pull"
    request: RequestId
    attempt: int
    puller: InstanceId
    address: bytes  # the puller's transport address, checksummed by the transport
    transfer: int  # chosen by the puller, never used twice by it
    runs: tuple[tuple[BlockId, int], ...]  # (first block in the source's pool, blocks): one message each
    checksum: bool = False
    secret: bytes = b""  # of the KvHandle


class Sending(Record, frozen=True, kw_only=True):
    """The sends are posted. `checksums`, if asked for: crc32 of each run."""

    request: RequestId
    attempt: int
    checksums: tuple[int, ...] = ()


class Gone(Record, frozen=True, kw_only=True):
    """The KV is not here any more (aborted, expired, or another attempt): nothing was sent."""

    request: RequestId
    attempt: int
    reason: str


class KvReleased(Record, frozen=True, kw_only=True):
    """Decode -> prefill: I have it, or will never want it; and no transfer of mine touches it any more."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.kv_released"
    request: RequestId
    attempt: int
    puller: InstanceId


class KvRenewed(Record, frozen=True, kw_only=True):
    """Scheduler or decode -> prefill: these still wait their turn; start their leases anew."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.kv_renewed"
    requests: tuple[tuple[RequestId, int], ...]  # (request, attempt)


class KvExpired(Record, frozen=True, kw_only=True):
    """Prefill -> scheduler: nobody came for it in time; it is freed."""

    SUBJECT: ClassVar[str] = "ds.v1.scheduler.kv_expired"
    request: RequestId
    attempt: int
    source: InstanceId


class LinkTest(Record, frozen=True, kw_only=True):
    """Decode -> prefill: send that much of the agreed pattern under `transfer` (boot self-test of a pair)."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.link_test"
    puller: InstanceId
    address: bytes
    transfer: int
    pieces: int
    piece_bytes: int


class LinkTestAnswer(Record, frozen=True, kw_only=True):
    status: Literal["sending", "failed"]
    detail: str = ""
