"""Which KV block is whose. Every block is free or has one owner, and nothing is freed that may still be touched.

Prefill side:  computing -> held(lease) <-> pulling -> free
Decode side:   reserved -> filling -> running -> free        (prefilled locally: reserved -> running)

While a step computes or a transfer moves (computing, pulling, filling), giving up a holding only dooms it; its blocks
are free when the step or the transfer has been acknowledged as ended. Giving up twice, or an older attempt, changes
nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from shared.kv.free_runs import FreeRuns
from shared.specs.ids import BlockId, RequestId


class Owner(NamedTuple):
    request: RequestId
    attempt: int


class State(StrEnum):
    COMPUTING = "computing"
    HELD = "held"
    PULLING = "pulling"
    RESERVED = "reserved"
    FILLING = "filling"
    RUNNING = "running"


TOUCHED = frozenset({State.COMPUTING, State.PULLING, State.FILLING})
MOVES = frozenset(
    {
        (State.COMPUTING, State.HELD),
        (State.HELD, State.PULLING),
        (State.PULLING, State.HELD),
        (State.RESERVED, State.FILLING),
        (State.FILLING, State.RESERVED),  # the transfer failed and may be tried again
        (State.FILLING, State.RUNNING),
        (State.RESERVED, State.RUNNING),
    }
)


class OutOfBlocks(Exception):
    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} KV blocks wanted, {free} free")
        self.wanted, self.free = wanted, free


class WrongState(Exception):
    """A change that the states do not allow: a defect of the caller."""


@dataclass(slots=True)
class Holding:
    owner: Owner
    state: State
    blocks: list[BlockId]
    lease_until: float = field(default=float("inf"))  # meaningful while held
    doomed: bool = False  # to be freed as soon as nothing touches it


class Ledger:
    """The books of one pool. Times are monotonic seconds given by the caller."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = FreeRuns(blocks)
        self._holdings: dict[Owner, Holding] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def __contains__(self, owner: Owner) -> bool:
        return owner in self._holdings

    def __iter__(self) -> Iterator[Holding]:
        return iter(list(self._holdings.values()))

    def get(self, owner: Owner) -> Holding | None:
        return self._holdings.get(owner)

    def count(self, state: State) -> int:
        """Blocks in `state`."""
        return sum(len(holding.blocks) for holding in self._holdings.values() if holding.state is state)

    def counts(self) -> tuple[tuple[str, int], ...]:
        """(state, blocks) of every state that any block is in."""
        return tuple((state.value, blocks) for state in State if (blocks := self.count(state)))

    def take(self, owner: Owner, count: int, state: State) -> list[BlockId]:
        """`count` blocks for a new owner, or OutOfBlocks and nothing taken."""
        if owner in self._holdings:
            raise WrongState(f"{owner} holds blocks already")
        if count > len(self._free):
            raise OutOfBlocks(count, len(self._free))
        blocks = self._free.take(count)
        self._holdings[owner] = Holding(owner, state, blocks)
        return blocks

    def grow(self, owner: Owner, count: int) -> None:
        """More blocks at the end of what a running owner has, or OutOfBlocks and nothing taken."""
        if count > len(self._free):
            raise OutOfBlocks(count, len(self._free))
        self._existing(owner, State.RUNNING).blocks.extend(self._free.take(count))

    def move(self, owner: Owner, to: State) -> bool:
        """Change the state. False if the owner was doomed in the meantime: it is freed now and must not be used."""
        holding = self._existing(owner)
        if (holding.state, to) not in MOVES:
            raise WrongState(f"{owner}: {holding.state} -> {to}")
        holding.state = to
        if holding.doomed and to not in TOUCHED:
            self._drop(holding)
            return False
        return True

    def lease(self, owner: Owner, until: float) -> bool:
        """Hold on until then. False if there is nothing to hold any more."""
        holding = self._holdings.get(owner)
        if holding is None or holding.doomed:
            return False
        holding.lease_until = until
        return True

    def expired(self, now: float) -> list[Owner]:
        """Held owners whose lease has ended. Not one that is being pulled: its transfer has a deadline of its own."""
        return [h.owner for h in self._holdings.values() if h.state is State.HELD and h.lease_until <= now]

    def release(self, owner: Owner) -> bool:
        """Give up. True if the blocks are free now; False if nobody had them or something still touches them."""
        holding = self._holdings.get(owner)
        if holding is None:
            return False
        if holding.state in TOUCHED:
            holding.doomed = True
            return False
        self._drop(holding)
        return True

    def stranded(self) -> int:
        """Blocks that are neither free nor owned: 0, or the books are wrong."""
        return self.blocks - len(self._free) - sum(len(h.blocks) for h in self._holdings.values())

    def check(self) -> None:
        """Every block is free or owned exactly once. For tests, after every event."""
        owned = [int(block) for holding in self._holdings.values() for block in holding.blocks]
        everything = sorted(owned + self._free.ids())
        assert everything == list(range(self.blocks)), f"blocks lost or doubled: {everything}"
        assert len(self._free) == len(self._free.ids())
        assert all(h.state in TOUCHED for h in self._holdings.values() if h.doomed), "a doomed holding lives on"

    def _existing(self, owner: Owner, state: State | None = None) -> Holding:
        holding = self._holdings.get(owner)
        if holding is None or (state is not None and holding.state is not state):
            raise WrongState(f"{owner} is {holding.state if holding else 'unknown'}, wanted {state or 'a holding'}")
        return holding

    def _drop(self, holding: Holding) -> None:
        del self._holdings[holding.owner]
        self._free.give(holding.blocks)
