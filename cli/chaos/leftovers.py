"""What must be left of the load once it is over: nothing."""

import asyncio
import time
from collections.abc import Mapping

from cli.chaos.stack import LEASE_SECONDS, TormentedStack
from shared.messages.instances import Beat

SETTLE_SECONDS = LEASE_SECONDS + 22.0  # the longest lease, and the start of whoever was killed last
POLL_SECONDS = 0.25
MIB = 1 << 20
GROWTH_SHARE, GROWTH_BYTES = (
    0.25,
    48 * MIB,
)  # of the memory that a process had before the faults: that much more is fine


async def settled(stack: TormentedStack) -> list[str]:
    """Wait until everybody is ready and nobody holds anything; what is wrong if that takes too long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while found := _troubles(stack):
        if time.monotonic() > deadline:
            return found
        await asyncio.sleep(POLL_SECONDS)
    return []


def stranded_blocks(stack: TormentedStack) -> int:
    return sum(beat.capacity.blocks - beat.load.free_blocks for beat in stack.beats() if beat.capacity.blocks)


def grown(before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]) -> list[str]:
    """Parts with more memory than they may have; one that was started anew is held against what its kind had before."""
    found = []
    for name, (_, size) in after.items():
        had = max(old for other, (_, old) in before.items() if other.partition(" ")[0] == name.partition(" ")[0])
        if size > had * (1 + GROWTH_SHARE) + GROWTH_BYTES:
            found.append(f"{name} has {size / MIB:.0f} MiB of memory, {had / MIB:.0f} before")
    return found


def _troubles(stack: TormentedStack) -> list[str]:
    missing = stack.missing()
    found = [f"not ready: {', '.join(missing)}"] if missing else []
    return found + [trouble for beat in stack.beats() for trouble in _held(beat)]


def _held(beat: Beat) -> list[str]:
    load, blocks = beat.load, beat.capacity.blocks - beat.load.free_blocks
    found = [f"{beat.instance}: {blocks} KV blocks are not free"] if beat.capacity.blocks and blocks else []
    requests = max(len(beat.requests), load.queued_requests + load.running)
    return [*found, f"{beat.instance}: {requests} requests are not over"] if requests else found
