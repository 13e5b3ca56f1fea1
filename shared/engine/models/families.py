"""Which family's code runs which architecture."""

from shared.engine.models.decoder import Decoder
from shared.engine.models.gpt2 import load_gpt2
from shared.engine.models.llama import load_llama
from shared.engine.models.opt import load_opt
from shared.engine.weights import Weights
from shared.specs.model import ModelSpec


def load_decoder(spec: ModelSpec, weights: Weights) -> Decoder:
    """Read every weight of the model. BadModel if the checkpoint does not fit the spec exactly."""
    match spec.architecture:
        case "OPTForCausalLM":
            decoder = load_opt(spec, weights)
        case "GPT2LMHeadModel":
            decoder = load_gpt2(spec, weights)
        case _:
            decoder = load_llama(spec, weights)
    weights.finish(spec)
    return decoder
