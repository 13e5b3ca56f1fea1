"""Small random-weight models of every family, as ordinary Hugging Face folders with a tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)  # every byte is a token
END_TOKEN = 1
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA: dict[str, Any] = _SIZES | {
    "num_key_value_heads": 2,
    "intermediate_size": 112,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
_OPT: dict[str, Any] = _SIZES | {
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": 512,
    "init_std": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    "initializer_range": 0.2,
}

# name -> (config class of transformers, settings)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "llama3": ("LlamaConfig", _LLAMA | {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 24}),
    "llama_biased": ("LlamaConfig", _LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "mistral": ("MistralConfig", _LLAMA | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", _LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _LLAMA | {"head_dim": 32}),
    "opt": ("OPTConfig", _OPT),
    "opt_post_norm": ("OPTConfig", _OPT | {"do_layer_norm_before": False}),
    "gpt2": ("GPT2Config", _GPT2),
}


def make_model(family: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a float32 model of `family` (a key of FAMILIES) and a byte-level tokenizer into `folder`; returns it.

    `changes` override the family's config settings. Biases and norm weights are random too, so that none can be mixed
    up unseen. Deterministic by seed.
    """
    import transformers  # ten seconds to import; most users of this module need the constants only

    config_class, settings = FAMILIES[family]
    tokens = {"bos_token_id": 0, "eos_token_id": END_TOKEN, "pad_token_id": 2}
    config = getattr(transformers, config_class)(**(settings | tokens | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: token 6 + i is the i-th byte of the byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
