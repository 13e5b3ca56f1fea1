"""What OPT and GPT-2 have in common: layer norms with weight and bias, learned positions, an MLP of two layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from shared.engine.linear import Projection
from shared.engine.models.rotary import Rotation
from shared.engine.weights import Weights
from shared.specs.model import Activation, ModelSpec


@dataclass(frozen=True, slots=True)
class LayerNorm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    tokens: Tensor  # [vocabulary, hidden]
    positions: Tensor  # [offset + max_positions, hidden]
    offset: int

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return F.embedding(tokens, self.tokens) + F.embedding(positions + self.offset, self.positions)


@dataclass(frozen=True, slots=True)
class LayerNormLayer:
    """A decoder layer whose norms come before the attention and the MLP, or after each residual sum."""

    head_dim: int
    norm_first: bool
    attention_norm: LayerNorm
    qkv: Projection
    output: Projection
    mlp_norm: LayerNorm
    expand: Projection
    activate: Callable[[Tensor], Tensor]
    contract: Projection

    def project(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        assert rotation is None
        normed = self.attention_norm(x) if self.norm_first else x
        return self.qkv(normed).unflatten(1, (-1, self.head_dim))

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.output(context)
        if self.norm_first:
            return x.add_(self._mlp(self.mlp_norm(x)))
        x = self.attention_norm(x)
        return self.mlp_norm(x.add_(self._mlp(x)))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.contract(self.activate(self.expand(x)))


def load_layer_norm(weights: Weights, name: str, spec: ModelSpec) -> LayerNorm:
    shape = (spec.hidden_size,)
    return LayerNorm(weights.tensor(f"{name}.weight", shape), weights.tensor(f"{name}.bias", shape), spec.norm_eps)


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    match name:
        case "relu":
            return F.relu
        case "gelu":
            return F.gelu
        case "gelu_tanh":
            return lambda x: F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu
