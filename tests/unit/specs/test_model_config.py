import json
from pathlib import Path
from typing import Any

import pytest

from shared.specs.model import BadModel, LinearScaling, Llama3Scaling, ModelSpec, Rope
from shared.specs.model_config import parse_model_spec, read_model_spec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
OPT: dict[str, Any] = {
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 64,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "vocab_size": 300,
}


def qwen3(**changes: Any) -> ModelSpec:
    return parse_model_spec(LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32} | changes)


def test_a_llama_config_gives_its_facts():
    spec = parse_model_spec(LLAMA, name="tiny")
    assert spec == ModelSpec(
        name="tiny",
        architecture="LlamaForCausalLM",
        layers=2,
        hidden_size=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        vocab_size=300,
        max_positions=512,
        norm_eps=1e-5,
        activation="silu",
        tied_embeddings=False,
        rope=Rope(theta=10000.0),
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        dtype="bfloat16",
        eos_token_ids=(2,),
    )


def test_transformers_5_and_4_spellings_mean_the_same():
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}}
    new = {k: v for k, v in LLAMA.items() if k != "torch_dtype"} | {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling},
        "dtype": "bfloat16",
    }
    expected = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    assert parse_model_spec(old) == parse_model_spec(new)
    assert parse_model_spec(new).rope == Rope(theta=5e5, scaling=expected)


def test_linear_rope_scaling_is_known_under_its_oldest_name():
    spec = parse_model_spec(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert spec.rope == Rope(theta=10000.0, scaling=LinearScaling(factor=2.0))


def test_biases_and_norms_follow_the_family():
    qwen2 = parse_model_spec(LLAMA | {"architectures": ["Qwen2ForCausalLM"]})
    biased = parse_model_spec(LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.mlp_bias, qwen2.qk_norm) == (True, False, False, False)
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias, biased.qk_norm) == (True, True, True, False)
    assert (qwen3().qkv_bias, qwen3().qk_norm, qwen3().head_dim) == (False, True, 32)


def test_opt_and_gpt2_have_learned_positions_and_tied_embeddings():
    opt, gpt2 = parse_model_spec(OPT), parse_model_spec(GPT2)
    assert (opt.rope, opt.tied_embeddings, opt.activation, opt.intermediate_size) == (None, True, "relu", 128)
    assert (gpt2.rope, gpt2.tied_embeddings, gpt2.activation, gpt2.intermediate_size) == (None, True, "gelu_tanh", 256)
    assert (opt.max_positions, gpt2.max_positions) == (512, 512)


def test_an_opt_with_late_norms_has_no_final_norm():
    spec = parse_model_spec(OPT | {"do_layer_norm_before": False})
    assert (spec.norm_first, spec.final_norm) == (False, False)


def test_end_tokens_of_the_generation_config_win():
    assert parse_model_spec(LLAMA, {"eos_token_id": [7, 8]}).eos_token_ids == (7, 8)
    assert parse_model_spec(LLAMA, {"eos_token_id": None}).eos_token_ids == (2,)
    assert parse_model_spec(LLAMA | {"eos_token_id": None}).eos_token_ids == ()


def test_a_window_that_no_sequence_outgrows_is_no_obstacle():
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"]}
    assert parse_model_spec(mistral | {"sliding_window": None}).max_positions == 512
    assert parse_model_spec(mistral | {"sliding_window": 512}).max_positions == 512
    assert qwen3(sliding_window=128, use_sliding_window=False).max_positions == 512
    assert qwen3(sliding_window=128, use_sliding_window=True, layer_types=["full_attention"] * 2).layers == 2
    assert qwen3(sliding_window=128, use_sliding_window=True, max_window_layers=2).layers == 2


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (LLAMA | {"architectures": ["FalconForCausalLM"]}, "FalconForCausalLM: supported are LlamaForCausalLM, "),
        (LLAMA | {"architectures": None}, r"\(none\): supported are"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling type 'yarn'"),
        (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor must be a positive"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantized"),
        (LLAMA | {"hidden_act": "gelu"}, "only silu"),
        (LLAMA | {"num_key_value_heads": 3}, "do not divide evenly"),
        (LLAMA | {"num_attention_heads": 5, "num_key_value_heads": 5}, "64 is not divisible by 5 heads"),
        (LLAMA | {"vocab_size": "many"}, "vocab_size must be a positive integer, not 'many'"),
        (LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 128}, "sliding_window 128 is smaller"),
        (
            LLAMA
            | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "use_sliding_window": True}
            | {"max_window_layers": 1},
            "sliding_window 8 is smaller",
        ),
        (OPT | {"word_embed_proj_dim": 32}, "word_embed_proj_dim 32 differs from hidden_size 64"),
        (OPT | {"activation_function": "tanh"}, "activation_function 'tanh'"),
        (OPT | {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2 | {"add_cross_attention": True}, "cross attention"),
    ],
)
def test_what_would_give_wrong_answers_is_refused_by_name(config: dict[str, Any], complaint: str):
    with pytest.raises(BadModel, match=complaint):
        parse_model_spec(config)


def test_a_folder_is_read_with_its_generation_config(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_model_spec(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert read_model_spec(tmp_path).eos_token_ids == (9,)


def test_a_missing_or_broken_config_is_named(tmp_path: Path):
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        read_model_spec(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadModel, match="not valid JSON"):
        read_model_spec(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BadModel, match="must hold a JSON object"):
        read_model_spec(tmp_path)
