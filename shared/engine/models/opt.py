"""OPT: learned positions with an offset of two, layer norms before or after."""

from collections.abc import Callable

from torch import Tensor

from shared.engine.models.decoder import Decoder
from shared.engine.models.layer_norm import LayerNormLayer, LearnedPositions, activation, load_layer_norm
from shared.engine.weights import Weights
from shared.specs.model import ModelSpec

POSITION_OFFSET = 2  # the first two rows belonged to padding


def load_opt(spec: ModelSpec, weights: Weights) -> Decoder:
    prefix = weights.prefix("decoder.embed_tokens.weight", ("model.", "")) + "decoder."
    tokens = weights.tensor(f"{prefix}embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    position_rows = spec.max_positions + POSITION_OFFSET
    positions = weights.tensor(f"{prefix}embed_positions.weight", (position_rows, spec.hidden_size))
    layers = [_layer(spec, weights, f"{prefix}layers.{index}.") for index in range(spec.layers)]
    final_norm: Callable[[Tensor], Tensor] = (
        load_layer_norm(weights, f"{prefix}final_layer_norm", spec) if spec.final_norm else _unchanged
    )
    if spec.tied_embeddings:
        head = weights.tied(tokens)
    else:
        head = weights.linear(["lm_head"], [spec.vocab_size], spec.hidden_size, bias=False)
    return Decoder(LearnedPositions(tokens, positions, POSITION_OFFSET), None, layers, final_norm, head)


def _layer(spec: ModelSpec, weights: Weights, prefix: str) -> LayerNormLayer:
    attention, hidden = f"{prefix}self_attn.", spec.hidden_size
    return LayerNormLayer(
        head_dim=spec.head_dim,
        norm_first=spec.norm_first,
        attention_norm=load_layer_norm(weights, f"{prefix}self_attn_layer_norm", spec),
        qkv=weights.linear(
            [f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"],
            [hidden] * 3,
            hidden,
            bias=spec.qkv_bias,
        ),
        output=weights.linear([f"{attention}out_proj"], [hidden], hidden, bias=spec.output_bias),
        mlp_norm=load_layer_norm(weights, f"{prefix}final_layer_norm", spec),
        expand=weights.linear([f"{prefix}fc1"], [spec.intermediate_size], hidden, bias=spec.mlp_bias),
        activate=activation(spec.activation),
        contract=weights.linear([f"{prefix}fc2"], [hidden], spec.intermediate_size, bias=spec.mlp_bias),
    )


def _unchanged(x: Tensor) -> Tensor:
    return x
