"""How the pieces of a step lie in one flat batch of tokens. Arithmetic on numbers, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.engine.pieces import Piece

Indices = NDArray[np.int64]

SPARE_BLOCKS = 8  # a group this much longer than its shortest member costs less than another group


@dataclass(frozen=True, slots=True)
class Span:
    """One piece's rows in the flat batch, and where its whole context is."""

    piece: int  # index into the step's pieces
    first_row: int
    rows: int
    start: int  # position of the first row
    blocks: Indices  # table of the blocks that hold positions 0 to end - 1

    @property
    def end(self) -> int:
        return self.start + self.rows


@dataclass(frozen=True, slots=True)
class Batch:
    """All arrays are int64 with one entry per token, spans in row order: single tokens first, by rising context."""

    spans: tuple[Span, ...]
    singles: int  # how many spans have one row
    tokens: Indices
    positions: Indices
    block_ids: Indices  # where each token's key and value go
    offsets: Indices  # and at which place within the block
    stale: Indices  # blocks begun and not filled by this step: clear them before writing


def lay_out(pieces: Sequence[Piece], block_tokens: int) -> Batch:
    """The flat batch of a step."""
    assert pieces, "a step without pieces"
    order = sorted(range(len(pieces)), key=lambda i: (len(pieces[i].tokens) > 1, pieces[i].start))
    spans: list[Span] = []
    row = 0
    for index in order:
        piece = pieces[index]
        end = piece.start + len(piece.tokens)
        used = -(-end // block_tokens)
        assert end > piece.start, "a piece without tokens"
        assert used <= len(piece.blocks), f"{end} tokens in {len(piece.blocks)} blocks"
        table = np.array(piece.blocks[:used], dtype=np.int64)
        spans.append(Span(index, row, len(piece.tokens), piece.start, table))
        row += len(piece.tokens)
    positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
    block_ids = np.concatenate([span.blocks[np.arange(span.start, span.end) // block_tokens] for span in spans])
    stale = [span.blocks[-1] for span in spans if _leaves_new_block_open(span, block_tokens)]
    return Batch(
        spans=tuple(spans),
        singles=sum(span.rows == 1 for span in spans),
        tokens=np.array([token for index in order for token in pieces[index].tokens], dtype=np.int64),
        positions=positions,
        block_ids=block_ids,
        offsets=positions % block_tokens,
        stale=np.array(stale, dtype=np.int64),
    )


def group_singles(singles: Sequence[Span], most_blocks: int) -> list[Sequence[Span]]:
    """Cut spans of rising length into groups to be padded to their longest: at most about twice the needed work.

    A group of several has at most `most_blocks` blocks, padding included.
    """
    groups: list[Sequence[Span]] = []
    first = 0
    for i in range(1, len(singles) + 1):
        if i == len(singles) or not _fit(
            len(singles[first].blocks), len(singles[i].blocks), i - first + 1, most_blocks
        ):
            groups.append(singles[first:i])
            first = i
    return groups


def _fit(shortest: int, longest: int, spans: int, most_blocks: int) -> bool:
    return longest <= 2 * shortest + SPARE_BLOCKS and spans * longest <= most_blocks


def padded_tables(spans: Sequence[Span]) -> Indices:
    """Block tables [spans, longest], filled up with each span's own first block: its data meets no other sequence."""
    width = max(len(span.blocks) for span in spans)
    tables = np.empty((len(spans), width), dtype=np.int64)
    for row, span in zip(tables, spans, strict=True):
        row[: len(span.blocks)] = span.blocks
        row[len(span.blocks) :] = span.blocks[0]
    return tables


def _leaves_new_block_open(span: Span, block_tokens: int) -> bool:
    last_block_start = (span.end - 1) // block_tokens * block_tokens
    return span.end % block_tokens != 0 and last_block_start >= span.start
