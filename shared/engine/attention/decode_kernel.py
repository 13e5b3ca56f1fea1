"""One new token per sequence over the paged cache, in Triton: contexts are read where they are, by the whole GPU.

Imported only by what needs it: Triton comes with torch's CUDA build alone. As in flash decoding, the context of one
sequence and key-value head is cut into parts; every part has a softmax of its own, and these are merged.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from shared.engine.kv_cache import KvCache

TILE = 64  # tokens of a context that are looked at together
LEAST_ROWS = 16  # of a product on tensor cores; a smaller group of query heads is filled up


class DecodeKernel:
    """Room for at most `rows` sequences. Used on one stream."""

    def __init__(self, cache: KvCache, heads: int, rows: int, splits: int) -> None:
        self._pool, self._heads, self._splits = cache.pool, heads, splits
        self._kv_heads, self._head_dim = cache.pool.shape[-2:]
        # For each part: the sum of weighted values, then the largest score, then the sum of weights.
        self._parts = torch.empty((rows, heads, splits, self._head_dim + 2), device=cache.pool.device)

    def __call__(self, layer: int, heads: Tensor, positions: Tensor, tables: Tensor) -> Tensor:
        """Context [rows, heads * head_dim]; each row's token sees its sequence up to and with its own position.

        heads [rows, heads + 2 * kv_heads, head_dim], whose keys and values are in the cache already. positions int32
        [rows] and tables int32 [rows, blocks]. Enqueued on the current stream, without a wait.
        """
        rows, pool, splits = len(positions), self._pool, self._splits
        group, width = self._heads // self._kv_heads, triton.next_power_of_2(self._head_dim)
        context = heads.new_empty(rows, self._heads * self._head_dim)
        sizes = {"HEADS": self._heads, "HEAD_DIM": self._head_dim, "WIDTH": width, "SPLITS": splits}
        _attend_part[(rows, self._kv_heads, splits)](
            heads,
            pool,
            positions,
            tables,
            self._parts,
            layer * pool.stride(1),
            self._head_dim**-0.5,
            heads.stride(0),
            positions.stride(0),
            tables.stride(0),
            *(pool.stride(dimension) for dimension in (0, 2, 3)),
            GROUP=group,
            GROUP_ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
            BLOCK_TOKENS=pool.shape[3],
            TOKENS=TILE,
            **sizes,
        )
        _merge[(rows, self._heads)](self._parts, context, SPLIT_ROWS=triton.next_power_of_2(splits), **sizes)
        return context


@triton.jit
def _attend_part(
    heads,
    pool,
    positions,
    tables,
    parts,
    layer_offset,
    scale,
    heads_stride,
    positions_stride,
    tables_stride,
    block_stride,
    half_stride,
    token_stride,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Part `split` of one row's context, for the query heads of one key-value head."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row * positions_stride) + 1
    part = tl.cdiv(tl.cdiv(length, TOKENS), SPLITS) * TOKENS
    first, last = split * part, tl.minimum(split * part + part, length)

    member, column = tl.arange(0, GROUP_ROWS), tl.arange(0, WIDTH)
    inside = column < HEAD_DIM
    query_head = kv_head * GROUP + member
    known = (member < GROUP)[:, None] & inside[None, :]
    at = heads + row * heads_stride + query_head[:, None] * HEAD_DIM + column[None, :]
    queries = tl.load(at, known, other=0.0)

    peak = tl.full([GROUP_ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([GROUP_ROWS], tl.float32)
    total = tl.zeros([GROUP_ROWS, WIDTH], tl.float32)
    for start in range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        seen = token < last
        block = tl.load(tables + row * tables_stride + token // BLOCK_TOKENS, seen, other=0).to(tl.int64)
        place = block * block_stride + layer_offset + (token % BLOCK_TOKENS) * token_stride + kv_head * HEAD_DIM
        there = seen[:, None] & inside[None, :]
        keys = tl.load(pool + place[:, None] + column[None, :], there, other=0.0)
        scores = tl.where(seen[None, :], tl.dot(queries, tl.trans(keys)) * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(peak - higher)
        values = tl.load(pool + half_stride + place[:, None] + column[None, :], there, other=0.0)
        total = total * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
        weight = weight * shrink + tl.sum(weights, 1)
        peak = higher

    result = parts + ((row * HEADS + query_head) * SPLITS + split) * (HEAD_DIM + 2)
    tl.store(result[:, None] + column[None, :], total, known)
    tl.store(result + HEAD_DIM, peak, member < GROUP)
    tl.store(result + HEAD_DIM + 1, weight, member < GROUP)


@triton.jit
def _merge(
    parts,
    context,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT_ROWS: tl.constexpr,
):
    """All parts of one row and query head. A part without tokens has the peak -inf and counts for nothing."""
    place = tl.program_id(0) * HEADS + tl.program_id(1)
    split, column = tl.arange(0, SPLIT_ROWS), tl.arange(0, WIDTH)
    part = parts + (place * SPLITS + split) * (HEAD_DIM + 2)
    peaks = tl.load(part + HEAD_DIM, split < SPLITS, other=float("-inf"))
    share = tl.exp(peaks - tl.max(peaks, 0))
    weight = tl.sum(tl.load(part + HEAD_DIM + 1, split < SPLITS, other=0.0) * share, 0)
    known = (split < SPLITS)[:, None] & (column < HEAD_DIM)[None, :]
    totals = tl.load(part[:, None] + column[None, :], known, other=0.0)
    result = tl.sum(totals * share[:, None], 0) / weight
    tl.store(context + place * HEAD_DIM + column, result.to(context.dtype.element_ty), column < HEAD_DIM)
