"""Decode steps as CUDA graphs: a step of hundreds of small kernels is launched as one.

Captured once for each of some batch sizes; a step uses the next larger one, filled up with copies of its first row,
which write the same key and value once more to the same place.
"""

import importlib.util
import shutil
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.engine.batch import Batch
from shared.engine.kv_cache import KvCache
from shared.engine.models.decoder import Decoder
from shared.specs.model import ModelSpec

PROGRAMS_PER_PROCESSOR = 4  # parts of contexts that a multiprocessor gets, so that short ones do not leave it idle
MOST_SPLITS = 64
TOKEN, POSITION, TABLE = 0, 1, 2  # columns of a step's table: the token, its position, and from TABLE on the blocks


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    rows: int
    logits: Tensor  # [rows, vocabulary], where a replay puts its result


class DecodeGraphs:
    """For steps in which each sequence has one token and draws the next. Used by one thread, on its current stream."""

    def __init__(self, decoder: Decoder, cache: KvCache, spec: ModelSpec, most_blocks: int, most_rows: int) -> None:
        """Captures every size up to `most_rows` at once. `most_blocks`: of the longest sequence."""
        self._decoder, self._cache, self._spec = decoder, cache, spec
        sizes = batch_sizes(most_rows)
        shape = (sizes[-1], TABLE + most_blocks)
        self._given = torch.zeros(shape, dtype=torch.int32).pin_memory()
        self._numbers = self._given.numpy()
        self._table = torch.zeros(shape, dtype=torch.int32, device=cache.pool.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._captured = [self._capture(rows) for rows in reversed(sizes)][::-1]  # the largest makes the memory of all

    def takes(self, batch: Batch) -> bool:
        return batch.singles == len(batch.spans) <= self._captured[-1].rows

    def logits(self, batch: Batch) -> Tensor:
        """float32 [rows, vocabulary], valid until the next call. Does not wait for the device."""
        rows = len(batch.spans)
        captured = next(captured for captured in self._captured if captured.rows >= rows)
        given = self._numbers[: captured.rows]
        given[:rows, TOKEN], given[:rows, POSITION] = batch.tokens, batch.positions
        for row, span in zip(given, batch.spans, strict=False):
            row[TABLE : TABLE + len(span.blocks)] = span.blocks
        given[rows:] = given[0]
        if len(batch.stale):
            self._cache.clear(torch.from_numpy(batch.stale).to(self._table.device))
        self._table[: captured.rows].copy_(self._given[: captured.rows], non_blocking=True)
        captured.graph.replay()
        return captured.logits[:rows]

    def _capture(self, rows: int) -> _Captured:
        """Block 0 is written meanwhile: it holds nothing yet."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward(rows)  # compiles kernels, and has libraries allocate what they may not during a capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(rows)
        return _Captured(graph, rows, logits)

    def _forward(self, rows: int) -> Tensor:
        from shared.engine.attention.decode_kernel import DecodeKernel

        cache, spec = self._cache, self._spec
        kernel = DecodeKernel(cache, spec.heads, rows, _splits(rows * spec.kv_heads, cache.pool.device))
        positions, tables = self._table[:rows, POSITION], self._table[:rows, TABLE:]
        blocks = tables.gather(1, (positions // cache.block_tokens).long()[:, None])[:, 0].long()
        offsets = (positions % cache.block_tokens).long()

        def attend(layer: int, heads: Tensor) -> Tensor:
            cache.write(layer, blocks, offsets, heads[:, spec.heads :].unflatten(1, (2, spec.kv_heads)))
            return kernel(layer, heads, positions, tables)

        return self._decoder.forward(self._table[:rows, TOKEN].long(), positions.long(), None, attend)


def why_unusable(cache: KvCache) -> str:
    """What keeps decode steps of this cache from being captured; "" if nothing does."""
    pool = cache.pool
    if pool.device.type != "cuda":
        return "not a GPU"
    if pool.dtype not in (torch.float16, torch.bfloat16):
        return f"the cache is {str(pool.dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "triton needs a C compiler: install gcc"
    return ""


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then every eighth up to 64, every sixteenth up to 256, every 64th; the last is `most`."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 64)]
    return [*(size for size in sizes if size < most), most]


def _splits(contexts: int, device: torch.device) -> int:
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(MOST_SPLITS, PROGRAMS_PER_PROCESSOR * processors // contexts))
