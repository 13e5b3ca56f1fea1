"""Who is alive, what it can do and how loaded it is. One self-contained record a second: the latest wins."""

from typing import ClassVar

import msgspec

from shared.messages.codec import MalformedMessage
from shared.specs.ids import InstanceId, Role, role_of
from shared.specs.record import Number, Record


class Link(Record, frozen=True, kw_only=True):
    """What the transfer self-test of one prefill-decode pair found. Reported by the decode side."""

    peer: InstanceId
    ok: bool
    transport: str = ""  # what UCX really uses: "cma", "cuda_ipc", "tcp", ...
    gigabytes_per_second: Number = 0.0
    detail: str = ""


class Capacity(Record, frozen=True, kw_only=True):
    """Fixed at boot."""

    max_model_tokens: int = 0  # longest sequence: the model's limit or what the pool can hold, whichever is less
    block_tokens: int = 0
    blocks: int = 0
    max_batch: int = 0  # sequences in one step
    batch_tokens: int = 0  # prefill: of one batch, L_m
    max_queue_tokens: int = 0  # prefill: context tokens it lets wait; decode: unused
    max_queue_requests: int = 0


class Load(Record, frozen=True, kw_only=True):
    """Now."""

    queued_requests: int = 0
    queued_tokens: int = 0
    running: int = 0
    free_blocks: int = 0
    held_blocks: int = 0  # prefill: computed and waiting to be pulled
    blocks_by_state: tuple[tuple[str, int], ...] = ()  # those that are not free, for whoever looks on


class Beat(Record, frozen=True, kw_only=True):
    SUBJECT: ClassVar[str] = "ds.v1.beat.{role}.{instance}"
    instance: InstanceId
    role: Role
    number: int  # counts this instance's beats: an older one than the last seen is ignored
    model: str = ""
    ready: bool = True  # false: loading, or has taken itself out
    draining: bool = False
    colocated: bool = False  # a decode instance that prefills locally
    kv_format: str = ""  # layout and dtype of a block: both sides of a link must agree
    capacity: Capacity = msgspec.field(default_factory=Capacity)
    load: Load = msgspec.field(default_factory=Load)
    links: tuple[Link, ...] = ()
    address: bytes = b""  # transport address, checksummed by the transport
    detail: str = ""  # why it is not ready
    sent_at: Number = 0.0  # unix seconds by the sender's clock: for whoever compares clocks, nobody decides by it
    requests: tuple[tuple[str, int], ...] = ()  # (request, attempt) it holds: lets a new scheduler learn who is where
    term: int = 0  # scheduler: in which it leads, 0 if it does not; others: the latest that they have heard of

    def check_sender(self, subject: str) -> None:
        """MalformedMessage unless it came on its own subject: the server lets each role speak on the role's only."""
        own = self.SUBJECT.format(role=self.role, instance=self.instance)
        if subject != own or role_of(self.instance) != self.role:
            raise MalformedMessage(f"a beat of {self.role} {self.instance!r} on {subject!r}: its sender is another")
