"""Reads a ModelSpec from a Hugging Face model folder: config.json as transformers 4 or 5 writes it, no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from shared.specs.model import Activation, Architecture, BadModel, LinearScaling, Llama3Scaling, ModelSpec, Rope

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_model_spec(folder: Path) -> ModelSpec:
    """The spec of the model in `folder`, from config.json and, if there, generation_config.json; or BadModel."""
    config = _read_json(folder / "config.json")
    generation_path = folder / "generation_config.json"
    generation = _read_json(generation_path) if generation_path.exists() else None
    try:
        return parse_model_spec(config, generation, name=folder.name)
    except BadModel:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:  # a value of a kind that nobody expects
        raise BadModel(f"{folder / 'config.json'}: {error}") from error


def parse_model_spec(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None, *, name: str = ""
) -> ModelSpec:
    """The spec in a parsed config.json, as transformers 4 or 5 writes it; BadModel names what is in the way."""
    architecture = _architecture(config)
    if config.get("quantization_config"):
        raise BadModel("quantization_config: quantized checkpoints are not supported; use the unquantized one")
    shared: dict[str, Any] = {
        "name": name,
        "architecture": architecture,
        "vocab_size": _count(config, "vocab_size"),
        "dtype": str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch."),
        "eos_token_ids": _end_tokens(config, generation_config or {}),
    }
    match architecture:
        case "OPTForCausalLM":
            return _opt(config, shared)
        case "GPT2LMHeadModel":
            return _gpt2(config, shared)
        case _:
            return _llama_family(config, shared, architecture)


def _llama_family(config: Mapping[str, Any], shared: dict[str, Any], architecture: Architecture) -> ModelSpec:
    hidden_size, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", default=heads)
    head_dim = _llama_head_dim(config, architecture, hidden_size, heads)
    max_positions = _count(config, "max_position_embeddings")
    layers = _count(config, "num_hidden_layers")
    if heads % kv_heads or head_dim % 2:
        raise BadModel(f"{heads} heads of size {head_dim} over {kv_heads} key-value heads do not divide evenly")
    _refuse_sliding_window(config, architecture, layers, max_positions)
    activation = _activation(config, "hidden_act", "silu")
    if activation != "silu":
        raise BadModel(f"hidden_act {activation!r}: only silu is supported in {architecture}")
    attention_bias = bool(config.get("attention_bias", False)) and architecture != "MistralForCausalLM"
    return ModelSpec(
        **shared,
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=_count(config, "intermediate_size"),
        max_positions=max_positions,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        activation=activation,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        rope=_rope(config),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        output_bias=architecture != "Qwen2ForCausalLM" and attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
    )


def _llama_head_dim(config: Mapping[str, Any], architecture: Architecture, hidden_size: int, heads: int) -> int:
    if config.get("head_dim") is not None:
        return _count(config, "head_dim")
    return 128 if architecture == "Qwen3ForCausalLM" else _head_dim(hidden_size, heads)


def _opt(config: Mapping[str, Any], shared: dict[str, Any]) -> ModelSpec:
    hidden_size, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    embedding_size = _count(config, "word_embed_proj_dim", default=hidden_size)
    if embedding_size != hidden_size:
        raise BadModel(
            f"word_embed_proj_dim {embedding_size} differs from hidden_size {hidden_size}: projected embeddings "
            "are not supported"
        )
    if not config.get("layer_norm_elementwise_affine", True):
        raise BadModel("layer_norm_elementwise_affine false: layer norms without weights are not supported")
    norm_first = bool(config.get("do_layer_norm_before", True))
    bias = bool(config.get("enable_bias", True))
    return ModelSpec(
        **shared,
        layers=_count(config, "num_hidden_layers"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=heads,
        head_dim=_head_dim(hidden_size, heads),
        intermediate_size=_count(config, "ffn_dim"),
        max_positions=_count(config, "max_position_embeddings"),
        norm_eps=1e-5,  # fixed in OPT
        activation=_activation(config, "activation_function", "relu"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        rope=None,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        norm_first=norm_first,
        final_norm=norm_first and not config.get("_remove_final_layer_norm", False),
    )


def _gpt2(config: Mapping[str, Any], shared: dict[str, Any]) -> ModelSpec:
    hidden_size, heads = _count(config, "n_embd"), _count(config, "n_head")
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx", False):
        raise BadModel("scale_attn_weights / scale_attn_by_inverse_layer_idx: only the default is supported")
    if config.get("add_cross_attention", False):
        raise BadModel("add_cross_attention: only decoders without cross attention are supported")
    return ModelSpec(
        **shared,
        layers=_count(config, "n_layer"),
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=heads,
        head_dim=_head_dim(hidden_size, heads),
        intermediate_size=_count(config, "n_inner", default=4 * hidden_size),
        max_positions=_count(config, "n_positions"),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=_activation(config, "activation_function", "gelu_new"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        rope=None,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _architecture(config: Mapping[str, Any]) -> Architecture:
    named = config.get("architectures") or []
    if not isinstance(named, list):
        raise BadModel(f"architectures must be a list, not {named!r:.80}")
    for architecture in named:
        if architecture in get_args(Architecture):
            return cast("Architecture", architecture)
    supported = ", ".join(get_args(Architecture))
    raise BadModel(f"architectures {', '.join(map(str, named)) or '(none)'}: supported are {supported}")


def _rope(config: Mapping[str, Any]) -> Rope:
    """Transformers 5 writes everything into `rope_parameters`; 4 writes `rope_theta` and `rope_scaling`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rotary_share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if rotary_share not in (None, 1, 1.0):
        raise BadModel(f"partial_rotary_factor {rotary_share}: only whole heads can be rotated")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    match kind:
        case "default":
            return Rope(theta=theta)
        case "linear":
            return Rope(theta=theta, scaling=LinearScaling(factor=_number(parameters, "factor")))
        case "llama3":
            scaling = Llama3Scaling(
                factor=_number(parameters, "factor"),
                low_freq_factor=_number(parameters, "low_freq_factor"),
                high_freq_factor=_number(parameters, "high_freq_factor"),
                original_max_positions=_count(parameters, "original_max_position_embeddings"),
            )
            return Rope(theta=theta, scaling=scaling)
        case _:
            raise BadModel(f"rope scaling type {kind!r}: supported are default, linear and llama3")


def _refuse_sliding_window(
    config: Mapping[str, Any], architecture: Architecture, layers: int, max_positions: int
) -> None:
    """A window that no sequence can outgrow changes nothing; any other would silently change the answer if ignored."""
    window = None
    if architecture == "MistralForCausalLM":
        window = config.get("sliding_window", 4096)  # absent means 4096 to transformers, null means none
    elif architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM") and config.get("use_sliding_window", False):
        kinds = config.get("layer_types")
        first_windowed_layer = _count(config, "max_window_layers", default=28)
        if "sliding_attention" in kinds if kinds else first_windowed_layer < layers:
            window = config.get("sliding_window", 4096)
    if window is not None and int(window) < max_positions:
        raise BadModel(
            f"sliding_window {window} is smaller than max_position_embeddings {max_positions}: sliding-window "
            "attention is not supported; lower max_position_embeddings in config.json to serve shorter sequences"
        )


def _end_tokens(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> tuple[int, ...]:
    """generation_config.json decides where it says anything: instruction-tuned models list more end tokens there."""
    for source in (generation_config, config):
        end = source.get("eos_token_id")
        if end is not None:
            return tuple(int(token) for token in (end if isinstance(end, list | tuple) else [end]))
    return ()


def _activation(config: Mapping[str, Any], key: str, default: str) -> Activation:
    name = config.get(key) or default
    if name not in _ACTIVATIONS:
        raise BadModel(f"{key} {name!r}: supported are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _head_dim(hidden_size: int, heads: int) -> int:
    if hidden_size % heads:
        raise BadModel(f"hidden size {hidden_size} is not divisible by {heads} heads")
    return hidden_size // heads


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadModel(f"config.json: {key} must be a positive integer, not {value!r}")
    return value


def _number(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise BadModel(f"config.json: rope {key} must be a positive number, not {value!r}")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise BadModel(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadModel(f"{path} must hold a JSON object")
    return value
