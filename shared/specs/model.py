"""What a model is: the facts that its computation depends on. No tensors, no torch. `model_config` reads them."""

from dataclasses import dataclass
from typing import Literal

Architecture = Literal[
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "OPTForCausalLM",
    "GPT2LMHeadModel",
]
Activation = Literal["silu", "relu", "gelu", "gelu_tanh"]


class BadModel(ValueError):
    """The model cannot be served. The text says why and, where there is one, the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """All rotation frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, those between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    name: str
    architecture: Architecture
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int  # rows of the embedding: every token id is below it
    max_positions: int  # longest sequence the model was made for
    norm_eps: float
    activation: Activation
    tied_embeddings: bool
    rope: Rope | None  # None: learned position embeddings
    qkv_bias: bool
    output_bias: bool  # of the attention output projection
    mlp_bias: bool
    qk_norm: bool = False  # RMS norm of each query and key head before the rotation
    norm_first: bool = True  # False: layer norms come after the residual sums
    final_norm: bool = True
    dtype: str  # of the stored weights, "" if config.json does not say
    eos_token_ids: tuple[int, ...]  # any of these ends an answer
