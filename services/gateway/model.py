"""What the gateway knows of the served model: its tokenizer, chat template, end tokens and length."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from jinja2 import TemplateSyntaxError

from services.gateway.template import ChatTemplate
from services.gateway.tokenizer import Tokenizer
from shared.specs.model import BadModel
from shared.specs.model_config import read_model_spec
from shared.specs.settings import BadSetting

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None  # None: it has none, only /v1/completions can be used
    stop_token_ids: tuple[int, ...]
    most_tokens: int  # the longest sequence the model was made for
    vocabulary: int  # token ids are below this


def load_model(model: str, name: str) -> ServedModel:
    """Read a model from a folder or, by its id, from the Hugging Face hub. BadSetting says what is missing."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(model, allow_patterns=list(FILES)))
        except (OSError, ValueError) as error:
            raise BadSetting(f"DISTSERVE_MODEL={model!r} is neither a folder nor can it be fetched: {error}") from error
    if not (folder / "tokenizer.json").is_file():
        raise BadSetting(f"{folder} has no tokenizer.json; save the model's tokenizer as a fast one")
    try:
        spec = read_model_spec(folder)
    except (OSError, BadModel) as error:
        raise BadSetting(f"DISTSERVE_MODEL={model!r} cannot be served: {error}") from error
    try:
        tokenizer = Tokenizer(folder / "tokenizer.json")
    except BaseException as error:  # the library has no class of its own for it; its panics are not even an Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadSetting(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    special_tokens = dict(_special_tokens(folder))
    end = tokenizer.id_of(special_tokens.get("eos_token", ""))
    return ServedModel(
        name=name,
        tokenizer=tokenizer,
        template=_template(folder, special_tokens, spec.max_positions * tokenizer.longest_chars),
        stop_token_ids=tuple(sorted({*spec.eos_token_ids, *(() if end is None else (end,))})),
        most_tokens=spec.max_positions,
        vocabulary=spec.vocab_size,
    )


def _template(folder: Path, special_tokens: dict[str, str], most_chars: int) -> ChatTemplate | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        source = _text(file)
    else:
        file = folder / "tokenizer_config.json"
        source = _read(file).get("chat_template")
    if isinstance(source, list):  # several, by name
        named = [one for one in source if isinstance(one, dict)]
        source = next((one.get("template") for one in named if one.get("name") == "default"), None)
    if not source:
        return None
    if not isinstance(source, str):
        raise _wrong(file, "its chat_template is no text")
    try:
        return ChatTemplate(source, special_tokens, most_chars)
    except TemplateSyntaxError as error:
        raise BadSetting(f"the chat template in {folder} is wrong at line {error.lineno}: {error.message}") from error


def _special_tokens(folder: Path) -> Iterator[tuple[str, str]]:
    known = _read(folder / "special_tokens_map.json") | _read(folder / "tokenizer_config.json")
    for name in SPECIAL_TOKENS:
        token = known.get(name)
        if isinstance(token, dict):  # an AddedToken, written out
            token = token.get("content")
        if isinstance(token, str):
            yield name, token


def _read(file: Path) -> dict[str, Any]:
    """A JSON file of the model; empty if it has none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(_text(file))
        json.dumps(content, ensure_ascii=False).encode()  # JSON can write half of a surrogate pair, which is no text
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise _wrong(file, "it holds no JSON object")
    return content


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(file, str(error)) from error


def _wrong(file: Path, why: str) -> BadSetting:
    return BadSetting(f"{file} cannot be used: {why}; fetch the model's files again, or correct this one")
