"""What is found wrong before anything is started, and what a person is told."""

import json
from pathlib import Path

import pytest

from cli.preflight import find_model, visible_gpus
from cli.problems import Problem

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def test_a_folder_is_served_by_its_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = find_model("my-model", tmp_path / "models")
    assert (found.folder, found.name, found.chats) == (model, "my-model", False)


def test_a_longer_sequence_than_the_model_was_made_for_is_refused_with_its_length(model: Path, tmp_path: Path):
    found = find_model(str(model), tmp_path)
    found.check_length(None)
    found.check_length(64)
    with pytest.raises(Problem, match=r"--max-model-len 65: my-model was made for sequences of 64 tokens"):
        found.check_length(65)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_model_with_a_chat_template_chats(model: Path, tmp_path: Path, file: str):
    (model / file).write_text('{"chat_template": "..."}')
    assert find_model(str(model), tmp_path).chats


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_is_named(model: Path, tmp_path: Path, file: str):
    (model / file).write_text("{")
    with pytest.raises(Problem, match=rf"--model {model}.*{file} is not valid JSON"):
        find_model(str(model), tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(model: Path, tmp_path: Path, file: str):
    (model / file).unlink()
    with pytest.raises(Problem, match=rf"--model {model}.*{file.partition('.')[2]}"):
        find_model(str(model), tmp_path)


def test_an_unsupported_architecture_is_named_with_those_that_are_supported(model: Path, tmp_path: Path):
    (model / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["MambaForCausalLM"]}))
    with pytest.raises(Problem, match=r"MambaForCausalLM.*LlamaForCausalLM"):
        find_model(str(model), tmp_path)


@pytest.mark.parametrize("wanted", ["nowhere", "./no/where", "/no/where"])
def test_a_folder_that_is_not_there_is_named(wanted: str, tmp_path: Path):
    with pytest.raises(Problem, match=f"--model {wanted}: there is no such folder"):
        find_model(wanted, tmp_path)


def test_the_gpus_that_were_chosen_are_used():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, 3"}) == ["GPU-a", "3"]


def test_the_installed_gpus_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-x)'\necho 'GPU 1: H100 (UUID: GPU-y)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert visible_gpus({}) == ["0", "1"]


@pytest.mark.parametrize("environment", [{}, {"CUDA_VISIBLE_DEVICES": ""}])
def test_no_gpu_is_said_with_the_remedy(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem, match="--device cpu"):
        visible_gpus(environment)
