"""What can be found wrong before anything is started. Each function returns what is needed or raises Problem."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.problems import Problem
from shared.specs.model import BadModel, ModelSpec
from shared.specs.model_config import read_model_spec

DEMO = "demo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "chat_template.jinja"]
NVIDIA_SMI_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Model:
    folder: Path
    name: str  # to serve it by
    chats: bool  # it has a chat template
    most_tokens: int  # the longest sequence it was made for

    def check_length(self, wanted: int | None) -> None:
        if wanted is not None and wanted > self.most_tokens:
            raise Problem(
                f"--max-model-len {wanted}: {self.name} was made for sequences of {self.most_tokens} tokens at most; "
                f"choose no more, or leave it out"
            )


def find_model(wanted: str, models: Path) -> Model:
    """The demo model is made in `models`, a hub id downloaded; then the folder is checked."""
    if wanted == DEMO:
        folder, name = _demo(models), DEMO
    elif Path(wanted).is_dir():
        folder = Path(wanted).resolve()
        name = folder.name
    elif HUB_ID.fullmatch(wanted) and not Path(wanted).exists():
        folder, name = _download(wanted), wanted
    else:
        raise Problem(
            f"--model {wanted}: there is no such folder, and it is no Hugging Face id (owner/name); "
            f"leave --model out for the demo model"
        )
    return Model(folder, name, _has_chat_template(folder), check_model(folder).max_positions)


def check_model(folder: Path) -> ModelSpec:
    try:
        spec = read_model_spec(folder)
    except BadModel as error:
        raise Problem(f"--model {folder}: {error}") from error
    if not (folder / "tokenizer.json").is_file():
        raise Problem(f"--model {folder}: it has no tokenizer.json; save its tokenizer as a fast one (transformers)")
    if not any(folder.glob("*.safetensors")):
        raise Problem(
            f"--model {folder}: it has no *.safetensors weights; convert them (save_pretrained in transformers)"
        )
    return spec


def _has_chat_template(folder: Path) -> bool:
    tokenizer_config = folder / "tokenizer_config.json"
    try:
        named = tokenizer_config.is_file() and "chat_template" in json.loads(tokenizer_config.read_text())
    except ValueError as error:
        raise Problem(f"--model {folder}: {tokenizer_config.name} is not valid JSON: {error}") from error
    return named or (folder / "chat_template.jinja").is_file()


def _demo(models: Path) -> Path:
    folder = models / DEMO
    if not folder.exists():
        from cli import demo_model  # numpy and a tokenizer trainer, needed once

        try:
            demo_model.ensure(folder)
        except (demo_model.CorpusTooSmall, OSError) as error:
            raise Problem(f"cannot make the demo model in {folder}: {error}") from error
    return folder


def downloaded(model: str) -> Path | None:
    """Where a hub id lies on this machine; None: it is not here, or it is no hub id."""
    if not HUB_ID.fullmatch(model) or Path(model).exists():
        return None
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=MODEL_FILES, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def _download(model: str) -> Path:
    from huggingface_hub import errors, snapshot_download  # slow to import, and seldom needed

    try:
        return Path(snapshot_download(model, allow_patterns=MODEL_FILES))
    except errors.GatedRepoError as error:
        remedy = f"accept its terms at https://huggingface.co/{model} and set HF_TOKEN"
        raise Problem(f"--model {model}: access is granted on request: {remedy}") from error
    except errors.RepositoryNotFoundError as error:
        raise Problem(f"--model {model}: neither a folder here nor a public model on the Hugging Face hub") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Problem(f"--model {model}: cannot be downloaded ({reason}); --model also takes a folder") from error


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """CUDA's names for the GPUs that may be used, at least one."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        gpus = [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
    else:
        gpus = [str(index) for index in range(_installed_gpus())]
    if not gpus:
        raise Problem("--device cuda: no NVIDIA GPU to be seen (nvidia-smi, CUDA_VISIBLE_DEVICES); try --device cpu")
    return gpus


def _installed_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        command = ["nvidia-smi", "--list-gpus"]
        listing = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Problem("--device cuda: nvidia-smi does not answer; is the driver in order?") from error
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
