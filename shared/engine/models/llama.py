"""Llama and its relatives Mistral, Qwen2 and Qwen3: RMS norms, rotary positions, grouped queries, gated MLP."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.engine.cpu.kernels import Kernels
from shared.engine.linear import Projection
from shared.engine.models.decoder import Decoder
from shared.engine.models.rotary import Rotary, Rotation, rotate
from shared.engine.weights import Weights
from shared.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class RmsNorm:
    weight: Tensor
    eps: float
    kernels: Kernels | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.rms_norm(x, self.weight, self.eps)
        if x.dtype == torch.float32 and x.device.type == "cpu":
            return self.in_few_passes(x)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def in_few_passes(self, x: Tensor) -> Tensor:
        """On a CPU F.rms_norm is a chain of operations, up to 3 times slower than these on a prompt's rows."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)


@dataclass(frozen=True, slots=True)
class LlamaLayer:
    spec: ModelSpec
    attention_norm: RmsNorm
    qkv: Projection
    head_scale: Tensor | None  # [heads + kv_heads, head_dim], Qwen3: weights of the query and key norms
    output: Projection
    mlp_norm: RmsNorm
    gate_up: Projection
    down: Projection
    kernels: Kernels | None

    def project(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        spec = self.spec
        heads = self.qkv(self.attention_norm(x)).unflatten(1, (-1, spec.head_dim))
        queries_and_keys = heads[:, : spec.heads + spec.kv_heads]
        if self.head_scale is not None:
            normed = F.rms_norm(queries_and_keys, (spec.head_dim,), None, spec.norm_eps)
            queries_and_keys.copy_(normed.mul_(self.head_scale))
        assert rotation is not None
        if self.kernels is not None:
            self.kernels.rotate(heads, spec.heads + spec.kv_heads, *rotation)
        else:
            rotate(queries_and_keys, rotation)
        return heads

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.output(context)
        return x.add_(self.down(self._gate(self.gate_up(self.mlp_norm(x)))))

    def _gate(self, gate_up: Tensor) -> Tensor:
        if self.kernels is not None:
            return self.kernels.gate(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


def load_llama(spec: ModelSpec, weights: Weights) -> Decoder:
    embedding = weights.tensor("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    layers = [_layer(spec, weights, f"model.layers.{index}.") for index in range(spec.layers)]
    norm = RmsNorm(weights.tensor("model.norm.weight", (spec.hidden_size,)), spec.norm_eps, weights.kernels)
    if spec.tied_embeddings:
        head = weights.tied(embedding)
    else:
        head = weights.linear(["lm_head"], [spec.vocab_size], spec.hidden_size, bias=False)
    assert spec.rope is not None
    rotary = Rotary(spec.rope, spec.head_dim, weights.device, exact=weights.kernels is not None)
    return Decoder(lambda tokens, _: F.embedding(tokens, embedding), rotary, layers, norm, head)


def _layer(spec: ModelSpec, weights: Weights, prefix: str) -> LlamaLayer:
    attention, mlp, hidden = f"{prefix}self_attn.", f"{prefix}mlp.", spec.hidden_size
    query_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.tensor(f"{prefix}{name}.weight", (hidden,)), spec.norm_eps, weights.kernels)

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
        kernels=weights.kernels,
    )


def _head_scale(spec: ModelSpec, weights: Weights, attention: str) -> Tensor:
    query = weights.tensor(f"{attention}q_norm.weight", (spec.head_dim,))
    key = weights.tensor(f"{attention}k_norm.weight", (spec.head_dim,))
    scale = query.new_empty(spec.heads + spec.kv_heads, spec.head_dim)
    scale[: spec.heads], scale[spec.heads :] = query, key
    return scale
