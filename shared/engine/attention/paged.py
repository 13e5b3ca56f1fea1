"""What every kind of attention does the same way: a step's keys and values are written before they are read."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from shared.engine.batch import Batch, Indices
from shared.engine.kv_cache import KvCache
from shared.specs.model import ModelSpec


class PagedAttention(ABC):
    """Used by one thread: `begin` a step, then `attend` once per layer in order."""

    def __init__(self, cache: KvCache, spec: ModelSpec) -> None:
        self.cache = cache
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.device = cache.pool.device
        # Rows of cache.halves: block b, layer l, key (0) or value (1) is row (b * layers + l) * 2 + (0 or 1).
        self._halves_per_block = spec.layers * 2
        self._half_of_layer = torch.arange(spec.layers * 2, device=self.device).view(spec.layers, 2, 1)

    def begin(self, batch: Batch) -> None:
        """Bring the step's indices to the device."""
        self._block_ids, self._offsets = self.to_device(batch.block_ids), self.to_device(batch.offsets)
        if len(batch.stale):
            self.cache.clear(self.to_device(batch.stale))
        self.prepare(batch)

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """heads [tokens, heads + 2 * kv_heads, head_dim]: queries, keys, values -> context [tokens, heads * head_dim].

        Every token sees all earlier positions of its own sequence and itself. Scores are scaled by head_dim ** -0.5.
        """
        self.write(layer, heads)
        return self.context(layer, heads)

    def write(self, layer: int, heads: Tensor) -> None:
        kv = heads[:, self.heads :].unflatten(1, (2, self.kv_heads))
        self.cache.write(layer, self._block_ids, self._offsets, kv)

    @abstractmethod
    def prepare(self, batch: Batch) -> None:
        """Whatever this kind needs to know of the step."""

    @abstractmethod
    def context(self, layer: int, heads: Tensor) -> Tensor:
        """As `attend`, the keys and values being in the cache already."""

    def to_device(self, indices: Indices) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(indices)).to(self.device, non_blocking=True)

    def half_rows(self, block_ids: Indices) -> Tensor:
        """Rows of cache.halves for each layer: [layers, 2 * blocks], all keys and then all values."""
        first = self.to_device(block_ids.reshape(-1)) * self._halves_per_block
        return (self._half_of_layer + first).flatten(1)
