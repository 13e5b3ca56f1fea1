import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from tests.models import make_model

ModelFolder = Callable[[str], Path]
LoadEngine = Callable[..., Engine]


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(
        1
    )  # steps of these sizes gain nothing from a second one and wait long for it on a busy machine


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The folder of a family's model, made once."""
    root = tmp_path_factory.mktemp("models")
    return cache(lambda family: make_model(family, root / family))


@pytest.fixture(scope="session")
def load_engine(model_folder: ModelFolder) -> LoadEngine:
    """An engine for a family; engines without changed settings are shared, for they keep nothing between requests."""

    @cache
    def load(family: str, **changes: Any) -> Engine:
        settings: dict[str, Any] = {"blocks": 256} | changes
        return Engine.load(EngineSettings(model=str(model_folder(family)), **settings))

    return load


@pytest.fixture(scope="session")
def reference(model_folder: ModelFolder) -> Callable[[str], Any]:
    """The same model in transformers."""
    import transformers

    @cache
    def load(family: str) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(model_folder(family)).eval()

    return load


@pytest.fixture
def copy_of(model_folder: ModelFolder, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder with its tensors changed."""

    def copy(family: str, change: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None) -> Path:
        folder = tmp_path / family
        shutil.copytree(model_folder(family), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return copy
