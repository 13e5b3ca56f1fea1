"""Attention on a CPU: tokens of decode steps read the pages where they are, in a kernel; prompts are gathered."""

import numpy as np
from torch import Tensor

from shared.engine.attention.gathered import GatheredAttention
from shared.engine.batch import Batch, padded_tables
from shared.engine.cpu.kernels import KEYS, HeadShape, Kernels
from shared.engine.kv_cache import KvCache
from shared.specs.model import ModelSpec


class InPlaceAttention(GatheredAttention):
    def __init__(self, cache: KvCache, spec: ModelSpec, kernels: Kernels) -> None:
        super().__init__(cache, spec)
        self._kernels = kernels
        numbers = cache.layer_block_bytes // cache.pool.itemsize
        of_heads = (spec.heads, spec.kv_heads, spec.head_dim, cache.block_tokens)
        self._shapes = [HeadShape(*of_heads, spec.layers * numbers, layer * numbers) for layer in range(spec.layers)]

    @staticmethod
    def usable(cache: KvCache) -> bool:
        return cache.block_tokens % KEYS == 0

    def prepare_singles(self, batch: Batch) -> None:
        singles = batch.spans[: batch.singles]
        if singles:
            self._tables = self.to_device(padded_tables(singles))
            self._tokens = self.to_device(np.array([span.end for span in singles]))

    def write(self, layer: int, heads: Tensor) -> None:
        self._kernels.store_kv(heads, self.cache.pool, self._block_ids, self._offsets, self._shapes[layer])

    def contexts_of_singles(self, layer: int, heads: Tensor) -> list[Tensor]:
        if not len(heads):
            return []
        shape = self._shapes[layer]
        return [self._kernels.decode_attention(heads, self.cache.pool, self._tables, self._tokens, shape)]
