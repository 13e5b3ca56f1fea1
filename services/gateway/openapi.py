"""This server's OpenAPI document, made from the same tables that read the requests."""

from functools import cache
from typing import Any

from services.gateway.fields import Field
from services.gateway.supported import (
    CHAT_FIELDS,
    CHAT_UNSUPPORTED,
    COMPLETION_FIELDS,
    COMPLETION_UNSUPPORTED,
    MOST_CHOICES,
    MOST_MESSAGES,
    ROLES,
    TOKEN_IDS,
)

VERSION = "0.1.0"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TOKENS: Schema = TOKEN_IDS.schema()
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
USAGE: Schema = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
}
FINISH_REASON: Schema = {"enum": ["stop", "length"]}
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {
            "oneOf": [
                TEXT,
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {"type": {"const": "text"}, "text": TEXT},
                    },
                },
            ]
        },
        "name": {"type": "string", "minLength": 1, "maxLength": 256},
    },
}
PROMPT: Schema = {
    "oneOf": [
        TEXT,
        {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_CHOICES},
        TOKENS,
        {"type": "array", "items": TOKENS, "minItems": 1, "maxItems": MOST_CHOICES},
    ]
}
LOGIT_BIAS: Schema = {
    "type": "object",
    "maxProperties": 1024,
    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
MODEL: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": TEXT, "object": {"const": "model"}, "created": COUNT, "max_model_len": COUNT},
}
ERROR_STATUSES = {
    "400": "A value that cannot be used; `param` names it",
    "401": "No valid API key",
    "404": "No such model",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not JSON",
}
BUSY_STATUSES = {
    "429": "Too many requests wait; come again after Retry-After seconds",
    "503": "Nobody can serve this now; come again after Retry-After seconds",
    "504": "The answer took too long",
}


@cache
def document() -> Schema:
    chat = _generation("Chat completion", "chat.completion", CHAT_FIELDS, CHAT_UNSUPPORTED, {"messages": _messages()})
    text = _generation("Completion", "text_completion", COMPLETION_FIELDS, COMPLETION_UNSUPPORTED, {"prompt": PROMPT})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DistServe",
            "version": VERSION,
            "description": "OpenAI-compatible generation with disaggregated prefill and decoding.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/completions": {"post": text},
            "/v1/models": {"get": _get("The models that can be used now", _list_of_models())},
            "/v1/models/{model}": {"get": _get("One model", MODEL, of_model=True)},
            "/tokenize": {"post": _post("Text or messages to token ids", _tokenize(), _tokenized())},
            "/detokenize": {"post": _post("Token ids to text", _detokenize(), _object(prompt=TEXT))},
            "/health": {"get": _get("The process is alive", _object(status=TEXT), keyed=False)},
            "/live": {"get": _get("The process is alive", _object(status=TEXT), keyed=False)},
            "/ready": {"get": _ready()},
            "/version": {"get": _get("The server's version", _object(version=TEXT))},
            "/metrics": {"get": _get("Metrics for Prometheus", TEXT, media="text/plain")},
            "/openapi.json": {"get": _get("This document", {"type": "object"})},
        },
    }


def _generation(
    summary: str, kind: str, fields: dict[str, Field], unsupported: dict[str, tuple[Any, ...]], own: dict[str, Schema]
) -> Schema:
    properties = {name: _or_null(field.schema()) for name, field in fields.items()}
    properties |= {name: {"enum": [None, *harmless]} for name, harmless in unsupported.items()}
    properties |= {"logit_bias": _or_null(LOGIT_BIAS)}
    properties |= {
        "stream_options": _or_null(
            _object_of_optional(include_usage=_or_null(FLAG), continuous_usage_stats=_or_null(FLAG))
        )
    }
    properties |= {"model": fields["model"].schema(), **own}
    request = {"type": "object", "required": ["model", *own], "properties": properties}
    answer = _object(
        id=TEXT,
        object={"const": kind},
        created=COUNT,
        model=TEXT,
        choices={"type": "array", "items": _object(index=COUNT, finish_reason=FINISH_REASON)},
        usage=USAGE,
    )
    operation = _post(summary, request, answer)
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": TEXT}
    operation["responses"] |= {status: _error(meaning) for status, meaning in BUSY_STATUSES.items()}
    return operation


def _post(summary: str, request: Schema, answer: Schema) -> Schema:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": _response("The answer", "application/json", answer)}
        | {status: _error(meaning) for status, meaning in ERROR_STATUSES.items()},
    }


def _get(
    summary: str, answer: Schema, *, media: str = "application/json", keyed: bool = True, of_model: bool = False
) -> Schema:
    operation: Schema = {"summary": summary, "responses": {"200": _response(summary, media, answer)}}
    if keyed:
        operation["responses"]["401"] = _error(ERROR_STATUSES["401"])
    if of_model:
        operation["responses"]["404"] = _error(ERROR_STATUSES["404"])
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": TEXT}]
    return operation


def _ready() -> Schema:
    operation = _get("A request can be served", _object(status=TEXT), keyed=False)
    missing = _object(status=TEXT, missing={"type": "array", "items": TEXT})
    operation["responses"]["503"] = _response("What is missing", "application/json", missing)
    return operation


def _messages() -> Schema:
    return {"type": "array", "items": MESSAGE, "minItems": 1, "maxItems": MOST_MESSAGES}


def _list_of_models() -> Schema:
    return _object(object={"const": "list"}, data={"type": "array", "items": MODEL})


def _tokenize() -> Schema:
    return _object_of_optional(
        model=TEXT, prompt=TEXT, messages=_messages(), add_special_tokens=FLAG, return_token_strs=FLAG
    )


def _tokenized() -> Schema:
    return _object(count=COUNT, max_model_len=COUNT, tokens={"type": "array", "items": COUNT})


def _detokenize() -> Schema:
    return {"type": "object", "required": ["tokens"], "properties": {"model": TEXT, "tokens": TOKENS}}


def _object(**members: Schema) -> Schema:
    return {"type": "object", "required": list(members), "properties": members}


def _object_of_optional(**members: Schema) -> Schema:
    return {"type": "object", "properties": members}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _response(meaning: str, media: str, schema: Schema) -> Schema:
    return {"description": meaning, "content": {media: {"schema": schema}}}


def _error(meaning: str) -> Schema:
    return _response(meaning, "application/json", ERROR)
