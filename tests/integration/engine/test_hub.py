import shutil
from pathlib import Path

import pytest

from shared.engine.hub import model_folder as find
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.model import BadModel


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def put_in_cache(cache: Path, source: Path) -> Path:
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    shutil.copytree(source, snapshot)
    return snapshot


def test_a_folder_is_itself(tmp_path: Path):
    assert find(str(tmp_path)) == tmp_path


def test_a_cached_hub_model_needs_no_network(offline: Path, model_folder):
    snapshot = put_in_cache(offline, model_folder("gpt2"))
    assert find("someone/tiny") == snapshot


def test_a_cache_that_holds_only_the_tokenizer_is_not_enough(offline: Path, model_folder):
    snapshot = put_in_cache(offline, model_folder("gpt2"))
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=r"0123abcd has neither model\.safetensors nor"):
        Engine.load(EngineSettings(model="someone/tiny"))


def test_a_model_that_is_nowhere_is_told_with_remedies(offline: Path):
    with pytest.raises(BadModel, match=r"'someone/else' is not a folder and cannot be downloaded.*HF_TOKEN"):
        find("someone/else")


@pytest.mark.parametrize("name", ["/no/such/folder", "./neither", "a/b/c"])
def test_a_path_that_is_no_folder_is_never_looked_for_in_the_hub(name: str):
    with pytest.raises(BadModel, match=r"is not a folder$"):
        find(name)


def test_a_name_that_the_hub_cannot_have_is_refused(offline: Path):
    with pytest.raises(BadModel, match="neither a folder nor a hub id"):
        find("white space/model")
