"""The paged KV cache: one tensor, block-major, so that a block is one contiguous piece of memory over all layers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.specs.model import ModelSpec


class KvCache:
    """pool [blocks, layers, 2, block_tokens, kv_heads, head_dim]; 2 is key, value. Keys are stored rotated.

    Every byte is written once at construction: a page that is first touched by a transfer costs a fault in the middle
    of it. On a GPU the pool must come from plain cudaMalloc, which is all that CUDA IPC can share.
    """

    def __init__(
        self, spec: ModelSpec, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (blocks, spec.layers, 2, block_tokens, spec.kv_heads, spec.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device).zero_()
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.block_bytes = bytes_per_block(spec, block_tokens, dtype)
        self.layer_block_bytes = self.block_bytes // spec.layers
        self.kv_format = _format(spec, block_tokens, dtype)
        self._bytes = self.pool.view(blocks, -1).view(torch.uint8)
        # Halves [blocks * layers * 2, block_tokens, kv_heads, head_dim]: the keys, or the values, of a block and layer.
        self.halves = self.pool.view(-1, block_tokens, spec.kv_heads, spec.head_dim)
        # Per layer [blocks, block_tokens, 2, kv_heads, head_dim], the order in which a step writes.
        self._layers = [layer.transpose(1, 2) for layer in self.pool.unbind(1)]

    def view(self, first_block: int, count: int) -> Any:
        """The memory of whole consecutive blocks: uint8 [count * block_bytes], a numpy array or a CUDA tensor."""
        assert 0 <= first_block < first_block + count <= self.blocks, (first_block, count)
        return _buffer(self._bytes[first_block : first_block + count].view(-1))

    def scratch(self, byte_count: int) -> Any:
        """Fresh memory like that of `view`, on the same device and not part of the pool: uint8 [byte_count]."""
        return _buffer(torch.zeros(byte_count, dtype=torch.uint8, device=self.pool.device))

    def write(self, layer: int, block_ids: Tensor, offsets: Tensor, kv: Tensor) -> None:
        """Store kv [tokens, 2, kv_heads, head_dim]; token i goes to offset offsets[i] of block block_ids[i]."""
        self._layers[layer][block_ids, offsets] = kv.to(self.pool.dtype)

    def clear(self, block_ids: Tensor) -> None:
        """Zero whole blocks. What an earlier owner left, perhaps NaN, must not meet the mask of a later one."""
        self.pool.index_fill_(0, block_ids, 0)


def bytes_per_block(spec: ModelSpec, block_tokens: int, dtype: torch.dtype) -> int:
    return spec.layers * 2 * block_tokens * spec.kv_heads * spec.head_dim * dtype.itemsize


def _format(spec: ModelSpec, block_tokens: int, dtype: torch.dtype) -> str:
    """Two caches can exchange blocks if and only if these strings are equal."""
    name = str(dtype).removeprefix("torch.")
    return (
        f"block-major/1 {name} layers={spec.layers} block_tokens={block_tokens} kv_heads={spec.kv_heads} "
        f"head_dim={spec.head_dim}"
    )


def _buffer(tensor: Tensor) -> np.ndarray | Tensor:
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
