"""The demo model: a small Llama with random weights, so that the whole system can be seen working without a download.

What it says is word salad, by design. Tokens of its vocabulary are pieces of Python source, most of them printable.
"""

import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
from safetensors.numpy import save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SEED = 20240710
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
BEGIN, END, PAD = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 8192, 256, 2048, 6, 8, 4, 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "torch_dtype": "float32",
}
# Gives logits a deviation of 0.15 * sqrt(HIDDEN) = 2.4: sampled text varies, greedy text does not repeat itself.
OUTPUT_SCALE = 0.15


class CorpusTooSmall(Exception):
    """The running Python has no, or not enough, sources of its standard library to train the tokenizer on."""


def ensure(folder: Path) -> bool:
    """Make the model in `folder` unless it is there; True if it was made now. Several processes may do it at once."""
    if folder.exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(unfinished)
        unfinished.chmod(0o755)
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():
            raise
        return False  # another process was faster, and its model is the same
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _write(folder: Path) -> None:
    tokenizer = _train_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
    (folder / "model.safetensors").write_bytes(save(_weights(tokenizer), metadata={"format": "pt"}))
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer_config = special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    generation_config = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD}
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", generation_config),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _sources() -> Iterator[str]:
    """The ASCII modules at the top of the standard library, about 4 MB, always in the same order."""
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        content = file.read_bytes()
        if content.isascii():
            yield content.decode("ascii")


def _train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise CorpusTooSmall(f"{tokenizer.get_vocab_size()} tokens found in the standard library, {VOCABULARY} wanted")
    return tokenizer


def _weights(tokenizer: Tokenizer) -> dict[str, numpy.ndarray]:
    """Every tensor, float32, by its Hugging Face name; 14.8 million parameters."""
    generator = numpy.random.default_rng(SEED)

    def normal(rows: int, columns: int, scale: float) -> numpy.ndarray:
        return generator.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(scale)

    def linear(outputs: int, inputs: int) -> numpy.ndarray:
        return normal(outputs, inputs, inputs**-0.5)  # keeps the variance of what goes through it

    ones = numpy.ones(HIDDEN, dtype=numpy.float32)
    weights = {"model.embed_tokens.weight": normal(VOCABULARY, HIDDEN, 1.0), "model.norm.weight": ones}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": ones,
            f"{prefix}.self_attn.q_proj.weight": linear(HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": linear(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": linear(HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.post_attention_layernorm.weight": ones,
            f"{prefix}.mlp.gate_proj.weight": linear(INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": linear(INTERMEDIATE, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": linear(HIDDEN, INTERMEDIATE),
        }
    output = normal(VOCABULARY, HIDDEN, OUTPUT_SCALE)
    output[_seldom_drawn(tokenizer)] = 0.0
    return weights | {"lm_head.weight": output}


def _seldom_drawn(tokenizer: Tokenizer) -> list[int]:
    """Token ids that would end an answer or show nothing: with a logit of 0 they are never the greedy choice."""
    texts = tokenizer.decode_batch([[token] for token in range(VOCABULARY)], skip_special_tokens=False)
    return [
        token
        for token, text in enumerate(texts)
        if token < len(SPECIAL_TOKENS) or not (text.isascii() and text.isprintable() and text.strip())
    ]
