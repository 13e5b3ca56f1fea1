"""Prefill <-> scheduler <-> decode: who holds a prompt's KV, and how it changes hands. KV bytes never ride the bus."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from shared.messages.requests import SubmitRequest
from shared.messages.tokens import TokenLogprobs
from shared.specs.ids import BlockId, InstanceId, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class KvHandle:
    """Where a context's KV waits to be pulled, and the first token that was sampled from it."""

    source: InstanceId
    blocks: tuple[BlockId, ...]  # ids in the source's pool, in context order
    tokens: int  # context tokens the blocks hold: prompt + generated of earlier attempts
    lease_seconds: float  # freed this long after the last KvRenewed
    first_token: int
    first_logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvReady:
    """Prefill -> scheduler: choose a decode instance. Carries the work: a scheduler without memory can place it."""

    SUBJECT: ClassVar[str] = "ds.v1.scheduler.kv_ready"
    work: SubmitRequest
    kv: KvHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class KvNoted:
    """The scheduler has it and will place it."""

    request: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullBlocks:
    """Decode -> prefill: my receives are posted under `transfer`; send these runs of blocks, in this order."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.pull"
    request: RequestId
    attempt: int
    puller: InstanceId
    address: bytes  # the puller's transport address, checksummed by the transport
    transfer: int  # chosen by the puller, never used twice by it
    runs: tuple[tuple[BlockId, int], ...]  # (first block in the source's pool, blocks): one message each
    checksum: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """The sends are posted. `checksums`, if asked for: crc32 of each run."""

    request: RequestId
    attempt: int
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The KV is not here any more (aborted, expired, or another attempt): nothing was sent."""

    request: RequestId
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvReleased:
    """Decode -> prefill: I have it, or will never want it; and no transfer of mine touches it any more."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.kv_released"
    request: RequestId
    attempt: int
    puller: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRenewed:
    """Scheduler or decode -> prefill: these still wait their turn; start their leases anew."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.kv_renewed"
    requests: tuple[tuple[RequestId, int], ...]  # (request, attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvExpired:
    """Prefill -> scheduler: nobody came for it in time; it is freed."""

    SUBJECT: ClassVar[str] = "ds.v1.scheduler.kv_expired"
    request: RequestId
    attempt: int
    source: InstanceId


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTest:
    """Decode -> prefill: send that much of the agreed pattern under `transfer` (boot self-test of a pair)."""

    SUBJECT: ClassVar[str] = "ds.v1.prefill.{instance}.link_test"
    puller: InstanceId
    address: bytes
    transfer: int
    pieces: int
    piece_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTestAnswer:
    status: Literal["sending", "failed"]
    detail: str = ""
