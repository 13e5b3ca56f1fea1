"""A checkpoint that does not fit ends the start with a text that names the file, the tensor and a remedy."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.model import BadModel
from tests.generation import generate

Tensors = dict[str, torch.Tensor]


def load(folder: Path, **settings) -> Engine:
    return Engine.load(EngineSettings(model=str(folder), blocks=32, **settings))


def shard(folder: Path) -> None:
    """Cut the single file into two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def test_shards_are_read_like_one_file(copy_of, load_engine):
    folder = copy_of("llama")
    shard(folder)
    assert generate(load(folder), [[7, 8, 9]], 8) == generate(load_engine("llama"), [[7, 8, 9]], 8)


def test_a_missing_shard_is_named_before_anything_is_read(copy_of):
    folder = copy_of("llama")
    shard(folder)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(BadModel, match=r"lacks 1 of 2 weight files, such as model-2\.safetensors: download the rest"):
        load(folder)


def test_a_missing_tensor_is_named(copy_of):
    folder = copy_of("qwen2", lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(BadModel, match=r"has no tensor 'model\.layers\.1\.self_attn\.k_proj\.bias'"):
        load(folder)


def test_a_wrong_shape_is_named_with_the_file(copy_of):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = copy_of("llama", lambda tensors: tensors.update({name: torch.zeros(111, 64)}))
    with pytest.raises(BadModel, match=rf"model\.safetensors: tensor '{name}' has shape \[111, 64\].*\[112, 64\]"):
        load(folder)


def test_a_wrong_shape_of_a_transposed_tensor_is_named_as_it_is_stored(copy_of):
    name = "transformer.h.1.mlp.c_fc.weight"
    folder = copy_of("gpt2", lambda tensors: tensors.update({name: torch.zeros(256, 64)}))
    with pytest.raises(BadModel, match=r"has shape \[256, 64\], config.json asks for \[64, 256\]"):
        load(folder)


def test_quantized_weights_are_refused(copy_of):
    folder = copy_of("llama", lambda t: t.update({"lm_head.weight": torch.zeros(262, 64, dtype=torch.int8)}))
    with pytest.raises(BadModel, match=r"'lm_head\.weight' is stored as I8; only F32, F16, BF16, F64"):
        load(folder)


def test_weights_that_the_config_does_not_mention_are_refused(copy_of):
    folder = copy_of("llama", lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    with pytest.raises(BadModel, match=r"holds 1 tensors that LlamaForCausalLM with this config\.json does not use"):
        load(folder)


def test_constants_of_old_checkpoints_are_passed_over(copy_of):
    load(copy_of("llama", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})))
    load(copy_of("gpt2", lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)})))


@pytest.mark.parametrize(("family", "prefix"), [("gpt2", "transformer."), ("opt", "model.")])
def test_names_without_the_usual_prefix_are_found(family: str, prefix: str, copy_of, load_engine):
    def strip(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    folder = copy_of(family, strip)
    assert generate(load(folder), [[7, 8, 9]], 8) == generate(load_engine(family), [[7, 8, 9]], 8)


def test_a_damaged_file_is_named(copy_of):
    folder = copy_of("llama")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadModel, match=r"model\.safetensors cannot be read .*: download or copy it again"):
        load(folder)


def test_a_folder_with_other_weights_says_how_to_convert_them(copy_of):
    folder = copy_of("llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadModel, match="only safetensors weights are read; load the model with transformers"):
        load(folder)


def test_stored_precision_is_converted(copy_of, load_engine):
    def halve(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()

    engine = load(copy_of("llama", halve))
    assert engine.cache.pool.dtype == torch.float32


def test_progress_ends_at_the_whole_and_never_falls(model_folder):
    heard: list[tuple[int, int]] = []
    Engine.load(EngineSettings(model=str(model_folder("opt")), blocks=8), lambda *bytes_: heard.append(bytes_))
    size = (model_folder("opt") / "model.safetensors").stat().st_size
    assert heard[-1] == (size, size)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert len(heard) > 10
