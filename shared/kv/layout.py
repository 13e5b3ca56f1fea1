"""Arithmetic of KV blocks: sizes, block counts, and which runs of blocks one message moves. Numbers only."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.specs.ids import BlockId


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks that are consecutive in both pools: one contiguous piece of memory on each side."""

    source: BlockId  # first block in the sender's pool
    target: BlockId  # first block in the receiver's pool
    count: int


def blocks_for(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def runs(source: Sequence[BlockId], target: Sequence[BlockId], most_blocks: int) -> list[Run]:
    """Cut the move of `source[i]` to `target[i]` into the fewest messages of at most `most_blocks` blocks each."""
    assert len(source) == len(target), f"{len(source)} blocks into {len(target)}"
    found: list[Run] = []
    for source_block, target_block in zip(source, target, strict=True):
        last = found[-1] if found else None
        follows = last is not None and (source_block, target_block) == (
            last.source + last.count,
            last.target + last.count,
        )
        if last is not None and follows and last.count < most_blocks:
            found[-1] = Run(last.source, last.target, last.count + 1)
        else:
            found.append(Run(source_block, target_block, 1))
    return found


def lie_within(runs: Sequence[tuple[BlockId, int]], held: Sequence[BlockId]) -> bool:
    """Whether (first block, blocks) are runs of blocks that are held, and no more blocks than that.

    Nothing is built before the sizes are known to be in order: a stranger may have chosen them.
    """
    if not runs or min(count for _, count in runs) < 1 or sum(count for _, count in runs) > len(held):
        return False
    return set(held).issuperset(block for first, count in runs for block in range(first, first + count))
