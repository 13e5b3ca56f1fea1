"""Attention by gathering each context into one piece for torch's fused attention. Any device and dtype."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.engine.attention.paged import PagedAttention
from shared.engine.batch import Batch, Span, group_singles, padded_tables
from shared.engine.kv_cache import KvCache
from shared.specs.model import ModelSpec

GROUP_BYTES = 1 << 20  # of one layer's contexts gathered together on a CPU: they are read again from the core's cache
QUERY_TILE = 256  # rows of a chunk computed together: later rows' keys are skipped, and the mask stays small


@dataclass(slots=True)
class _Group:
    """Sequences with one new token each, computed together, padded to the longest."""

    first_row: int
    rows: int
    tokens: int  # keys per sequence, padding included
    halves: Tensor  # [layers, 2 * rows * blocks]
    mask: Tensor | None  # [rows, 1, 1, tokens]: 0 or -inf; None: all have the same length


@dataclass(slots=True)
class _Chunk:
    """One sequence with several new tokens."""

    first_row: int
    rows: int
    end: int
    halves: Tensor | None  # [layers, 2 * blocks]; None: the chunk is the whole context, nothing is to be gathered
    mask: Tensor | None  # [tile rows, end] for the last tile; others use its lower right part


class GatheredAttention(PagedAttention):
    """No copy of the cache: one layer of the contexts of one group or chunk at a time, into the same memory."""

    def __init__(self, cache: KvCache, spec: ModelSpec) -> None:
        super().__init__(cache, spec)
        self._room = cache.pool.new_empty(0)
        self._most_blocks = (
            max(1, GROUP_BYTES // cache.layer_block_bytes) if self.device.type == "cpu" else cache.blocks
        )

    def prepare(self, batch: Batch) -> None:
        self._singles = batch.singles
        self.prepare_singles(batch)
        self._chunks = [self._chunk(span) for span in batch.spans[batch.singles :]]

    def context(self, layer: int, heads: Tensor) -> Tensor:
        parts = self.contexts_of_singles(layer, heads[: self._singles])
        parts += [self._attend_chunk(chunk, layer, heads) for chunk in self._chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prepare_singles(self, batch: Batch) -> None:
        singles = group_singles(batch.spans[: batch.singles], self._most_blocks)
        self._groups = [self._group(spans) for spans in singles]

    def contexts_of_singles(self, layer: int, heads: Tensor) -> list[Tensor]:
        """heads: those of the rows that are a sequence's only one; contexts of the same rows, in pieces"""
        return [self._attend_group(group, layer, heads) for group in self._groups]

    def _group(self, spans: Sequence[Span]) -> _Group:
        tables = padded_tables(spans)
        lengths = np.array([span.end for span in spans])
        longest = int(lengths.max())
        mask = None
        if longest > lengths.min():
            hidden = torch.arange(longest, device=self.device) >= self.to_device(lengths)[:, None]
            mask = torch.zeros(hidden.shape, dtype=self.cache.pool.dtype, device=self.device)
            mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None]
        return _Group(spans[0].first_row, len(spans), longest, self.half_rows(tables), mask)

    def _chunk(self, span: Span) -> _Chunk:
        if span.start == 0:
            return _Chunk(span.first_row, span.rows, span.end, None, None)
        tile = min(span.rows, QUERY_TILE)
        mask = torch.full((tile, span.end), float("-inf"), dtype=self.cache.pool.dtype, device=self.device)
        mask.triu_(span.end - tile + 1)
        return _Chunk(span.first_row, span.rows, span.end, self.half_rows(span.blocks), mask)

    def _attend_group(self, group: _Group, layer: int, heads: Tensor) -> Tensor:
        """The query heads of a key-value head are its query rows: far faster on a CPU than one query row per head."""
        rows = heads[group.first_row : group.first_row + group.rows, : self.heads]
        queries = rows.unflatten(1, (self.kv_heads, -1))
        keys, values = self._gather(group.halves[layer], group.rows, group.tokens, heads.dtype)
        mask = None if group.mask is None else group.mask.to(heads.dtype)
        context = F.scaled_dot_product_attention(queries, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
        return context.reshape(group.rows, -1)

    def _attend_chunk(self, chunk: _Chunk, layer: int, heads: Tensor) -> Tensor:
        rows = heads[chunk.first_row : chunk.first_row + chunk.rows]
        queries = rows[:, : self.heads].unflatten(1, (self.kv_heads, -1)).permute(1, 2, 0, 3)
        if chunk.halves is None:
            keys = self._per_query_head(rows[:, self.heads : -self.kv_heads])
            values = self._per_query_head(rows[:, -self.kv_heads :])
            context = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        else:
            gathered_keys, gathered_values = self._gather(chunk.halves[layer], 1, chunk.end, heads.dtype)
            keys, values = self._per_query_head(gathered_keys[0]), self._per_query_head(gathered_values[0])
            context = self._attend_tiles(chunk, queries, keys, values)
        return context.permute(2, 0, 1, 3).reshape(chunk.rows, -1)

    def _attend_tiles(self, chunk: _Chunk, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [kv_heads, group, rows, head_dim], keys and values [kv_heads, group, end, head_dim]."""
        assert chunk.mask is not None
        mask = chunk.mask.to(queries.dtype)
        parts = []
        for first in range(0, chunk.rows, QUERY_TILE):
            last = min(first + QUERY_TILE, chunk.rows)
            seen = chunk.end - chunk.rows + last
            parts.append(
                F.scaled_dot_product_attention(
                    queries[:, :, first:last],
                    keys[:, :, :seen],
                    values[:, :, :seen],
                    attn_mask=mask[first - last :, chunk.end - seen :],
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _per_query_head(self, rows: Tensor) -> Tensor:
        """[tokens, kv_heads, head_dim] -> [kv_heads, group, tokens, head_dim], without a copy."""
        group = self.heads // self.kv_heads
        return rows.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1)

    def _gather(self, halves: Tensor, sequences: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, tokens, kv_heads, head_dim], valid until the next call."""
        pool = self.cache.halves.flatten(1)
        if self._room.shape[0] < len(halves):
            self._room = pool.new_empty(2 * len(halves), pool.shape[1])  # twice: contexts grow, allocations are dear
        torch.index_select(pool, 0, halves, out=self._room[: len(halves)])
        room = self._room[: len(halves)].to(dtype)  # the cache can be shorter than what is computed with
        both = room.view(2, sequences, -1, self.kv_heads, self.head_dim)
        return both[0, :, :tokens], both[1, :, :tokens]
