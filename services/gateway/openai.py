"""What a client may ask for: the bodies of the OpenAI routes, read strictly.

null counts as absent. A field that would change the answer and is not supported is an error that names it. A field
nobody knows is ignored, as clients of other servers expect; its name is kept, so that it can be logged.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from services.gateway.errors import bad_value, context_too_long, not_supported
from services.gateway.fields import Flag, Many, Number, Text, read_table, shown
from services.gateway.supported import (
    CHAT_FIELDS,
    CHAT_UNSUPPORTED,
    COMPLETION_FIELDS,
    COMPLETION_UNSUPPORTED,
    HARMLESS,
    MOST_CHOICES,
    MOST_MESSAGES,
    ROLES,
    TOKEN_IDS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What both routes let a client choose. Values are in range; token ids are not yet held against the vocabulary."""

    model: str
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False  # in every chunk, as vLLM has it
    logprobs: int | None = None  # alternatives to report; None: no log-probabilities
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    ignored: tuple[str, ...] = field(default=(), compare=False)  # names of unknown fields


@dataclass(frozen=True, slots=True)
class ChatCall:
    messages: tuple[dict[str, str], ...]  # role, content and perhaps name, as the chat template gets them
    options: Options


@dataclass(frozen=True, slots=True)
class CompletionCall:
    prompts: tuple[str | tuple[int, ...], ...]  # text, or token ids
    options: Options


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a request's body."""
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise bad_value("body", f"The body is not valid JSON: {reason}", "invalid_json") from None
    if not isinstance(body, dict):
        raise bad_value("body", f"The body must be a JSON object, got {shown(body)}", "invalid_type")
    return body


def read_chat(body: dict[str, Any]) -> ChatCall:
    _refuse_unsupported(body, CHAT_UNSUPPORTED)
    values = read_table(CHAT_FIELDS, body)
    alternatives = values.pop("top_logprobs", None)
    if values.pop("logprobs", False):
        values["logprobs"] = alternatives or 0
    elif alternatives:
        raise bad_value("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")
    values["max_tokens"] = values.pop("max_completion_tokens", values.get("max_tokens"))
    messages = read_messages(body.get("messages"))
    return ChatCall(messages, _options(body, values, {*CHAT_FIELDS, *CHAT_UNSUPPORTED, "messages"}))


def read_completion(body: dict[str, Any], window: int) -> CompletionCall:
    """`window`: the most tokens that a prompt may have."""
    _refuse_unsupported(body, COMPLETION_UNSUPPORTED)
    values = read_table(COMPLETION_FIELDS, body)
    if values.pop("best_of", values.get("n", 1)) != values.get("n", 1):
        raise not_supported("best_of")
    prompts = _prompts(body.get("prompt"), window)
    return CompletionCall(prompts, _options(body, values, {*COMPLETION_FIELDS, *COMPLETION_UNSUPPORTED, "prompt"}))


def _options(body: dict[str, Any], values: dict[str, Any], known: Iterable[str]) -> Options:
    if "model" not in values:
        raise bad_value(
            "model", "'model' is missing; GET /v1/models lists what is served", "missing_required_parameter"
        )
    values.pop("user", None)
    values["stops"] = values.pop("stop", ())
    values["top_k"] = max(0, values.get("top_k", 0))
    values["logit_bias"] = _logit_bias(body.get("logit_bias"))
    values["include_usage"], values["continuous_usage"] = _usage(
        body.get("stream_options"), values.get("stream", False)
    )
    limit = values.get("max_tokens")
    if limit is not None and values.get("min_tokens", 0) > limit:
        raise bad_value("min_tokens", f"'min_tokens' must not be above 'max_tokens' ({limit})")
    ignored = sorted(set(body) - set(known) - HARMLESS - {"logit_bias", "stream_options"})
    return Options(**values, ignored=tuple(name[:64] for name in ignored[:32]))


def _refuse_unsupported(body: dict[str, Any], table: dict[str, tuple[Any, ...]]) -> None:
    for name, harmless in table.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise not_supported(name)


def read_messages(value: Any) -> tuple[dict[str, str], ...]:
    if value is None:
        raise bad_value("messages", "'messages' is missing", "missing_required_parameter")
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MESSAGES:
        raise bad_value("messages", f"'messages' must be a list of 1 to {MOST_MESSAGES} messages, got {shown(value)}")
    return tuple([_message(item, f"messages[{position}]") for position, item in enumerate(value)])


def _message(value: Any, param: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise bad_value(param, f"'{param}' must be an object, got {shown(value)}", "invalid_type")
    role = value.get("role")
    if role in ("tool", "function"):
        raise not_supported(f"{param}.role")
    if role not in ROLES:
        raise bad_value(f"{param}.role", f"'{param}.role' must be one of {', '.join(ROLES)}")
    for name in ("tool_calls", "function_call", "audio", "refusal"):
        if value.get(name) not in (None, [], ""):
            raise not_supported(f"{param}.{name}")
    message = {"role": "system" if role == "developer" else role, "content": _content(value.get("content"), param)}
    if value.get("name") is not None:
        message["name"] = Text(1, 256).read(value["name"], f"{param}.name")
    return message


def _content(value: Any, message: str) -> str:
    """A message's text: a string, or the joined texts of its parts."""
    param = f"{message}.content"
    if not isinstance(value, list):
        return Text().read(value, param)
    if not value:
        raise bad_value(param, f"'{param}' must not be an empty list")
    texts = []
    for position, part in enumerate(value):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise bad_value(f"{param}[{position}]", f"'{param}[{position}]' must be an object with a 'type'")
        if part["type"] != "text":
            raise not_supported(f"{param}[{position}].type")
        texts.append(Text().read(part.get("text"), f"{param}[{position}].text"))
    return "".join(texts)


def _prompts(value: Any, window: int) -> tuple[str | tuple[int, ...], ...]:
    """A string, a list of strings, one list of token ids, or a list of such lists."""
    if value is None:
        raise bad_value("prompt", "'prompt' is missing", "missing_required_parameter")
    if isinstance(value, str):
        return (Text().read(value, "prompt"),)
    if not isinstance(value, list) or not value:
        raise bad_value("prompt", f"'prompt' must be a string or a list that is not empty, got {shown(value)}")
    if isinstance(value[0], str):
        return Many(Text(), 1, MOST_CHOICES).read(value, "prompt")
    if isinstance(value[0], list):
        for prompt in value:
            check_count(prompt, window, "prompt")
        return Many(TOKEN_IDS, 1, MOST_CHOICES).read(value, "prompt")
    check_count(value, window, "prompt")
    return (TOKEN_IDS.read(value, "prompt"),)


def _usage(value: Any, stream: bool) -> tuple[bool, bool]:
    """Whether the usage is wanted, and whether in every chunk."""
    if value is None:
        return False, False
    if not isinstance(value, dict):
        raise bad_value("stream_options", "'stream_options' must be an object", "invalid_type")
    if not stream:
        raise bad_value("stream_options", "'stream_options' is allowed only with 'stream': true")
    wanted = [
        value.get(name) is not None and Flag().read(value[name], f"stream_options.{name}")
        for name in ("include_usage", "continuous_usage_stats")
    ]
    return wanted[0], all(wanted)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > 1024:
        raise bad_value("logit_bias", "'logit_bias' must map at most 1024 token ids to numbers")
    bias = []
    for token, weight in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise bad_value("logit_bias", "'logit_bias': every key must be a token id")
        bias.append((int(token), Number(-100, 100).read(weight, "logit_bias")))
    return tuple(bias)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def check_token_ids(tokens: Iterable[int], vocabulary: int, param: str) -> None:
    """ApiError if a token id is not one of the model's."""
    largest = max(tokens, default=0)
    if largest >= vocabulary:
        message = f"'{param}' holds token id {largest}, but the model's vocabulary ends at {vocabulary - 1}"
        raise bad_value(param, message)


def check_count(tokens: Any, window: int, param: str) -> None:
    """ApiError if there are more than can be served: before each is looked at, which takes long for millions."""
    if isinstance(tokens, list) and len(tokens) > window:
        raise context_too_long(window, len(tokens), 0, param)
