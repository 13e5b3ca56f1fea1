"""Llama as one writes it in plain torch, with a static cache: what an engine should beat on the same model."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from shared.engine.models.rotary import rotation_frequencies
from shared.specs.model import ModelSpec


class PlainLoop:
    """Every sequence has its own row of the cache; no pages, no batches of mixed lengths, no packed weights."""

    def __init__(self, folder: Path, spec: ModelSpec, dtype: torch.dtype, sequences: int, tokens: int) -> None:
        self._weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        self._spec, self._dtype = spec, dtype
        assert spec.rope is not None
        self._frequencies = rotation_frequencies(spec.rope, spec.head_dim).repeat(2)
        shape = (spec.layers, 2, sequences, spec.kv_heads, tokens, spec.head_dim)
        self._cache = torch.zeros(shape, dtype=dtype)

    @torch.inference_mode()
    def step(self, tokens: Tensor, start: int) -> Tensor:
        """tokens int64 [sequences, new], all at position `start` and on -> the next token of each, int64 [sequences]"""
        sequences, new = tokens.shape
        end = start + new
        angles = torch.arange(start, end)[:, None] * self._frequencies
        cos, sin = angles.cos().to(self._dtype), angles.sin().to(self._dtype)
        x = F.embedding(tokens, self._weights["model.embed_tokens.weight"])
        for layer in range(self._spec.layers):
            name = f"model.layers.{layer}."
            normed = self._norm(x, f"{name}input_layernorm")
            query, key, value = (self._heads(normed, f"{name}self_attn.{part}_proj") for part in "qkv")
            cache = self._cache[layer, :, :sequences]
            cache[0, :, :, start:end], cache[1, :, :, start:end] = rotated(key, cos, sin), value
            keys, values = cache[:, :, :, :end]
            context = F.scaled_dot_product_attention(
                rotated(query, cos, sin), keys, values, is_causal=new > 1, enable_gqa=True
            )
            x = x + self._linear(context.transpose(1, 2).flatten(2), f"{name}self_attn.o_proj")
            normed = self._norm(x, f"{name}post_attention_layernorm")
            gated = F.silu(self._linear(normed, f"{name}mlp.gate_proj")) * self._linear(normed, f"{name}mlp.up_proj")
            x = x + self._linear(gated, f"{name}mlp.down_proj")
        head = "model.embed_tokens" if self._spec.tied_embeddings else "lm_head"
        return self._linear(self._norm(x[:, -1], "model.norm"), head).argmax(dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"])

    def _heads(self, x: Tensor, name: str) -> Tensor:
        return self._linear(x, name).unflatten(2, (-1, self._spec.head_dim)).transpose(1, 2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (self._spec.hidden_size,), self._weights[f"{name}.weight"], self._spec.norm_eps)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
