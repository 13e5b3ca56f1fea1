"""Llama and its relatives Mistral, Qwen2 and Qwen3: RMS norms, rotary positions, grouped queries, gated MLP."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from shared.engine.linear import Linear
from shared.engine.models.decoder import Decoder
from shared.engine.models.rotary import Rotary, Rotation, rotate
from shared.engine.weights import Weights
from shared.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class RmsNorm:
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    spec: ModelSpec
    attention_norm: RmsNorm
    qkv: Linear
    head_scale: Tensor | None  # [heads + kv_heads, head_dim], Qwen3: weights of the query and key norms
    output: Linear
    mlp_norm: RmsNorm
    gate_up: Linear
    down: Linear

    def project(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        spec = self.spec
        heads = self.qkv(self.attention_norm(x)).unflatten(1, (-1, spec.head_dim))
        queries_and_keys = heads[:, : spec.heads + spec.kv_heads]
        if self.head_scale is not None:
            normed = F.rms_norm(queries_and_keys, (spec.head_dim,), None, spec.norm_eps)
            queries_and_keys.copy_(normed.mul_(self.head_scale))
        assert rotation is not None
        rotate(queries_and_keys, rotation)
        return heads

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.output(context)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x.add_(self.down(F.silu(gate).mul_(up)))


def load_llama(spec: ModelSpec, weights: Weights) -> Decoder:
    embedding = weights.tensor("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    layers = [_layer(spec, weights, f"model.layers.{index}.") for index in range(spec.layers)]
    norm = RmsNorm(weights.tensor("model.norm.weight", (spec.hidden_size,)), spec.norm_eps)
    if spec.tied_embeddings:
        head = Linear(embedding, None)
    else:
        head = weights.linear(["lm_head"], [spec.vocab_size], spec.hidden_size, bias=False)
    assert spec.rope is not None
    rotary = Rotary(spec.rope, spec.head_dim, weights.device)
    return Decoder(lambda tokens, _: F.embedding(tokens, embedding), rotary, layers, norm, head)


def _layer(spec: ModelSpec, weights: Weights, prefix: str) -> LlamaLayer:
    attention, mlp, hidden = f"{prefix}self_attn.", f"{prefix}mlp.", spec.hidden_size
    query_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.tensor(f"{prefix}{name}.weight", (hidden,)), spec.norm_eps)

    return LlamaLayer(
        spec=spec,
        attention_norm=norm("input_layernorm"),
        qkv=weights.linear(
            [f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"],
            [query_size, kv_size, kv_size],
            hidden,
            bias=spec.qkv_bias,
        ),
        head_scale=_head_scale(spec, weights, attention) if spec.qk_norm else None,
        output=weights.linear([f"{attention}o_proj"], [hidden], query_size, bias=spec.output_bias),
        mlp_norm=norm("post_attention_layernorm"),
        gate_up=weights.linear(
            [f"{mlp}gate_proj", f"{mlp}up_proj"], [spec.intermediate_size] * 2, hidden, bias=spec.mlp_bias
        ),
        down=weights.linear([f"{mlp}down_proj"], [hidden], spec.intermediate_size, bias=spec.mlp_bias),
    )


def _head_scale(spec: ModelSpec, weights: Weights, attention: str) -> Tensor:
    query = weights.tensor(f"{attention}q_norm.weight", (spec.head_dim,))
    key = weights.tensor(f"{attention}k_norm.weight", (spec.head_dim,))
    scale = query.new_empty(spec.heads + spec.kv_heads, spec.head_dim)
    scale[: spec.heads], scale[spec.heads :] = query, key
    return scale
