"""The forward pass that all families share: a flat batch of tokens of any mix of sequences through all layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from shared.engine.linear import Projection
from shared.engine.models.rotary import Rotary, Rotation


class Layer(Protocol):
    def project(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x [tokens, hidden] -> queries, keys, values [tokens, heads + 2 * kv_heads, head_dim], ready for attention."""
        ...

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """x [tokens, hidden] and the attention's context [tokens, heads * head_dim] -> x after this layer."""
        ...


@dataclass(frozen=True, slots=True)
class Decoder:
    embed: Callable[[Tensor, Tensor], Tensor]  # (tokens [n], positions [n]) -> [n, hidden]
    rotary: Rotary | None
    layers: Sequence[Layer]
    final_norm: Callable[[Tensor], Tensor]
    head: Projection

    def forward(
        self, tokens: Tensor, positions: Tensor, wanted: Tensor | None, attend: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """Logits float32 [rows, vocabulary] of the rows `wanted` (int64 [rows]; None: all).

        tokens and positions int64 [n]. attend(layer, heads) sees every layer's queries, keys and values.
        """
        x = self.embed(tokens, positions)
        rotation = self.rotary.at(positions, x.dtype) if self.rotary else None
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            context = attend(index, layer.project(x, rotation))
            if index == last and wanted is not None:  # no other row's result is needed past its key and value
                x, context = x[wanted], context[wanted]
            x = layer.finish(x, context)
        return self.head(self.final_norm(x)).float()
