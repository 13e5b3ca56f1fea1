"""GPT-2: learned positions, weights stored transposed ([inputs, outputs]) and queries, keys, values as one matrix."""

from shared.engine.linear import Projection
from shared.engine.models.decoder import Decoder
from shared.engine.models.layer_norm import LayerNormLayer, LearnedPositions, activation, load_layer_norm
from shared.engine.weights import Weights
from shared.specs.model import ModelSpec


def load_gpt2(spec: ModelSpec, weights: Weights) -> Decoder:
    prefix = weights.prefix("wte.weight", ("transformer.", ""))
    tokens = weights.tensor(f"{prefix}wte.weight", (spec.vocab_size, spec.hidden_size))
    positions = weights.tensor(f"{prefix}wpe.weight", (spec.max_positions, spec.hidden_size))
    layers = [_layer(spec, weights, f"{prefix}h.{index}.") for index in range(spec.layers)]
    final_norm = load_layer_norm(weights, f"{prefix}ln_f", spec)
    if spec.tied_embeddings:
        head = weights.tied(tokens)
    else:
        head = weights.linear(["lm_head"], [spec.vocab_size], spec.hidden_size, bias=False)
    return Decoder(LearnedPositions(tokens, positions, 0), None, layers, final_norm, head)


def _layer(spec: ModelSpec, weights: Weights, prefix: str) -> LayerNormLayer:
    hidden = spec.hidden_size

    def linear(name: str, outputs: int, inputs: int) -> Projection:
        return weights.linear([prefix + name], [outputs], inputs, bias=True, transposed=True)

    return LayerNormLayer(
        head_dim=spec.head_dim,
        norm_first=True,
        attention_norm=load_layer_norm(weights, f"{prefix}ln_1", spec),
        qkv=linear("attn.c_attn", 3 * hidden, hidden),
        output=linear("attn.c_proj", hidden, hidden),
        mlp_norm=load_layer_norm(weights, f"{prefix}ln_2", spec),
        expand=linear("mlp.c_fc", spec.intermediate_size, hidden),
        activate=activation(spec.activation),
        contract=linear("mlp.c_proj", hidden, spec.intermediate_size),
    )
