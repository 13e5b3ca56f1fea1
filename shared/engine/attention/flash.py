"""Attention on a GPU by the flash attention that torch ships: all sequences of a step in one call, of any lengths."""

import numpy as np
import torch
from torch import Tensor

from shared.engine.attention.paged import PagedAttention
from shared.engine.batch import Batch, Indices
from shared.engine.kv_cache import KvCache

LARGEST_HEAD = 256


class FlashAttention(PagedAttention):
    """The kernel in torch cannot page blocks of fewer than 256 tokens, so each layer's contexts are gathered first."""

    @staticmethod
    def usable(cache: KvCache) -> bool:
        pool = cache.pool
        half = pool.dtype in (torch.float16, torch.bfloat16)
        head_fits = pool.shape[-1] % 8 == 0 and pool.shape[-1] <= LARGEST_HEAD
        return (
            pool.device.type == "cuda"
            and half
            and head_fits
            and torch.backends.cuda.is_flash_attention_available()
            and torch.cuda.get_device_capability(pool.device) >= (8, 0)
        )

    def prepare(self, batch: Batch) -> None:
        spans = batch.spans
        self._halves = self.half_rows(np.concatenate([span.blocks for span in spans]))
        self._max_queries = max(span.rows for span in spans)
        self._max_keys = max(span.end for span in spans)
        self._query_starts = self._starts([span.rows for span in spans])
        self._key_starts = self._starts([len(span.blocks) * self.cache.block_tokens for span in spans])
        self._keys_used = self.to_device(np.array([span.end for span in spans])).int()

    def context(self, layer: int, heads: Tensor) -> Tensor:
        """The operator aligns the causal mask to the last used key, which is each sequence's newest token."""
        gathered = self.cache.halves.index_select(0, self._halves[layer])
        keys, values = gathered.view(2, -1, self.kv_heads, self.head_dim)
        context = torch.ops.aten._flash_attention_forward(
            heads[:, : self.heads],
            keys,
            values,
            self._query_starts,
            self._key_starts,
            self._max_queries,
            self._max_keys,
            0.0,  # dropout
            True,  # causal
            False,  # no debug mask
            seqused_k=self._keys_used,
        )[0]
        return context.flatten(1)

    def _starts(self, lengths: list[int]) -> Tensor:
        """Where each sequence starts, and the end of the last: int32 [sequences + 1]."""
        starts: Indices = np.cumsum([0, *lengths])
        return self.to_device(starts).int()
