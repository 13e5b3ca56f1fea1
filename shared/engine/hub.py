"""From a model's name to a folder on this machine."""

from pathlib import Path

from shared.engine.weights import weight_files
from shared.specs.model import BadModel

NEEDED_FILES = ["*.json", "tokenizer*", "*.jinja", "merges.txt", "vocab.txt", "model*.safetensors"]


def model_folder(model: str) -> Path:
    """`model` is a folder or a Hugging Face hub id. What is in the hub's cache is used without asking the network.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. BadModel if there is no such model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise BadModel(f"{model} is not a folder")
    return _cached(model) or _downloaded(model)


def _cached(model: str) -> Path | None:
    from huggingface_hub import snapshot_download  # half a second to import, and only hub ids need it
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=NEEDED_FILES, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, BadModel):  # absent, or someone fetched the tokenizer only
        return None
    except ValueError as error:
        raise BadModel(f"{model!r} is neither a folder nor a hub id: {error}") from None
    return folder


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=NEEDED_FILES))
    except (OSError, ValueError) as error:
        raise BadModel(
            f"{model!r} is not a folder and cannot be downloaded: {error}. Check the name, the network and HF_TOKEN, "
            "or copy the model here and name its folder"
        ) from None
