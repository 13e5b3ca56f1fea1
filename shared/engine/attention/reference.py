"""The plain twin of every other kind: one sequence at a time, as the formula says. Tests hold the others to it."""

import torch
from torch import Tensor

from shared.engine.attention.paged import PagedAttention
from shared.engine.batch import Batch, Span


class ReferenceAttention(PagedAttention):
    def prepare(self, batch: Batch) -> None:
        self._spans = batch.spans

    def context(self, layer: int, heads: Tensor) -> Tensor:
        return torch.cat([self._attend(span, layer, heads) for span in self._spans])

    def _attend(self, span: Span, layer: int, heads: Tensor) -> Tensor:
        queries = heads[span.first_row : span.first_row + span.rows, : self.heads].float()
        blocks = self.cache.pool[self.to_device(span.blocks), layer]  # [blocks, 2, block_tokens, kv_heads, head_dim]
        context = blocks.transpose(0, 1).flatten(1, 2)[:, : span.end].float()
        keys, values = context.repeat_interleave(self.heads // self.kv_heads, dim=2)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * self.head_dim**-0.5
        positions = torch.arange(span.end, device=self.device)
        later = positions > positions[span.start :, None]
        weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, values).flatten(1).to(heads.dtype)
