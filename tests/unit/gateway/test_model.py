import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.gateway.model import load_model
from shared.specs.settings import BadSetting
from tests.tiny_tokenizer import END, USER

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 5,
}
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def folder(tokenizer_file: Path, tmp_path: Path) -> Path:
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write(tmp_path, "config.json", CONFIG)
    return tmp_path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def rendered(folder: Path) -> str:
    template = load_model(str(folder), "m").template
    assert template is not None
    return template.render(HELLO)


def test_limits_come_from_the_config(folder: Path) -> None:
    model = load_model(str(folder), "m")
    assert (model.name, model.most_tokens, model.vocabulary) == ("m", 64, 320)
    assert model.template is None


def test_answers_end_with_the_configs_tokens_and_the_tokenizers_own(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": USER})
    assert load_model(str(folder), "m").stop_token_ids == (1, 5)
    write(folder, "generation_config.json", {"eos_token_id": [7, 9]})
    assert load_model(str(folder), "m").stop_token_ids == (1, 7, 9)


def test_a_template_file_comes_before_the_one_in_the_tokenizers_config(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "config {{ eos_token }}", "eos_token": {"content": END}})
    assert rendered(folder) == f"config {END}"
    (folder / "chat_template.jinja").write_text("file {{ messages[0].content }}")
    assert rendered(folder) == "file hi"


def test_of_several_templates_the_default_is_used(folder: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(folder, "tokenizer_config.json", {"chat_template": several})
    assert rendered(folder) == "plain"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("config.json", {"architectures": ["BertModel"]}, "cannot be served"),
        ("config.json", None, "cannot be served"),
        ("tokenizer_config.json", {"chat_template": "{% for %}"}, "line 1"),
        ("tokenizer_config.json", {"chat_template": 5}, r"tokenizer_config\.json cannot be used: .*fetch"),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": 5}]}, "no text"),
        ("special_tokens_map.json", ["</s>"], r"special_tokens_map\.json cannot be used: it holds no JSON object"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder: Path, name: str, content: Any, words: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        write(folder, name, content)
    with pytest.raises(BadSetting, match=words):
        load_model(str(folder), "m")


def test_what_is_neither_a_folder_nor_on_the_hub_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadSetting, match="neither a folder nor"):
        load_model("nobody/has-this-model", "m")


def test_a_template_file_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BadSetting, match=r"chat_template\.jinja cannot be used"):
        load_model(str(folder), "m")


def test_a_broken_tokenizer_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadSetting, match=r"tokenizer\.json cannot be read"):
        load_model(str(folder), "m")
