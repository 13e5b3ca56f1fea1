"""Who is alive, what it can do and how loaded it is. One self-contained record a second: the latest wins."""

from dataclasses import dataclass, field
from typing import ClassVar

from shared.specs.ids import InstanceId, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What the transfer self-test of one prefill-decode pair found. Reported by the decode side."""

    peer: InstanceId
    ok: bool
    transport: str = ""  # what UCX really uses: "cma", "cuda_ipc", "tcp", ...
    gigabytes_per_second: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Fixed at boot."""

    max_model_tokens: int = 0  # longest sequence: the model's limit or what the pool can hold, whichever is less
    block_tokens: int = 0
    blocks: int = 0
    max_batch: int = 0  # sequences in one step
    max_queue_tokens: int = 0  # prefill: context tokens it lets wait; decode: unused
    max_queue_requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Now."""

    queued_requests: int = 0
    queued_tokens: int = 0
    running: int = 0
    free_blocks: int = 0
    held_blocks: int = 0  # prefill: computed and waiting to be pulled


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    SUBJECT: ClassVar[str] = "ds.v1.beat.{role}.{instance}"
    instance: InstanceId
    role: Role
    number: int  # counts this instance's beats: an older one than the last seen is ignored
    model: str = ""
    ready: bool = True  # false: loading, or has taken itself out
    draining: bool = False
    colocated: bool = False  # a decode instance that prefills locally
    kv_format: str = ""  # layout and dtype of a block: both sides of a link must agree
    capacity: Capacity = field(default_factory=Capacity)
    load: Load = field(default_factory=Load)
    links: tuple[Link, ...] = ()
    address: bytes = b""  # transport address, checksummed by the transport
    detail: str = ""  # why it is not ready
    sent_at: float = 0.0  # unix seconds by the sender's clock: for whoever compares clocks, nobody decides by it
    requests: tuple[tuple[str, int], ...] = ()  # (request, attempt) it holds: lets a new scheduler learn who is where
