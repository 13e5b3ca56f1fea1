"""The routes beside generation: models, tokens, health, and the document that describes them all."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.gateway.body import BodyReader
from services.gateway.errors import bad_value, unknown_model
from services.gateway.fields import Field, Flag, Text, read_table
from services.gateway.model import ServedModel
from services.gateway.openai import check_count, check_token_ids, read_messages
from services.gateway.openapi import VERSION, document
from services.gateway.prompts import Prompts
from services.gateway.service import GatewayService
from services.gateway.supported import TOKEN_IDS

TOKENIZE_FIELDS: dict[str, Field] = {
    "model": Text(1, 256),
    "prompt": Text(),
    "add_special_tokens": Flag(),
    "return_token_strs": Flag(),
}
DETOKENIZE_FIELDS: dict[str, Field] = {"model": Text(1, 256), "tokens": TOKEN_IDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    service: GatewayService
    model: ServedModel
    prompts: Prompts
    body: BodyReader
    started_at: int  # Unix time
    tokenizing: asyncio.Lock = field(default_factory=asyncio.Lock)  # one text at a time: prompts have a thread left

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        missing = self.service.missing()
        if missing:
            return JSONResponse({"status": "not ready", "missing": missing}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "ready"})

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document())

    async def models(self, request: Request) -> Response:
        data = [] if self.service.missing() else [self._model()]
        return JSONResponse({"object": "list", "data": data})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self.model.name or self.service.missing():
            raise unknown_model(name)
        return JSONResponse(self._model())

    async def tokenize(self, request: Request) -> Response:
        body = await self.body.json(request.scope, request.receive)
        values = read_table(TOKENIZE_FIELDS, body)
        self._check_model(values)
        if ("prompt" in values) == (body.get("messages") is not None):
            raise bad_value("prompt", "Either 'prompt' or 'messages' must be given")
        if "prompt" in values:
            text, special_tokens = values["prompt"], values.get("add_special_tokens", True)
        else:
            text = self.prompts.chat_text(read_messages(body["messages"]))
            special_tokens = values.get("add_special_tokens", False)
        async with self.tokenizing:
            tokens = await self.model.tokenizer.encode(text, special_tokens)
        answer: dict[str, Any] = {"count": len(tokens), "max_model_len": self.prompts.window, "tokens": tokens}
        if values.get("return_token_strs"):
            answer["token_strs"] = [self.model.tokenizer.token_text(token) for token in tokens]
        return JSONResponse(answer)

    async def detokenize(self, request: Request) -> Response:
        body = await self.body.json(request.scope, request.receive)
        check_count(body.get("tokens"), self.prompts.window, "tokens")
        values = read_table(DETOKENIZE_FIELDS, body)
        self._check_model(values)
        if "tokens" not in values:
            raise bad_value("tokens", "'tokens' is missing", "missing_required_parameter")
        check_token_ids(values["tokens"], self.model.vocabulary, "tokens")
        return JSONResponse({"prompt": self.model.tokenizer.decode(values["tokens"], skip_special_tokens=False)})

    async def metrics(self, request: Request) -> Response:
        text, content_type = self.service.metrics.render()
        return Response(text, media_type=content_type)

    def _check_model(self, values: dict[str, Any]) -> None:
        if values.get("model", self.model.name) != self.model.name:
            raise unknown_model(values["model"])

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model.name,
            "object": "model",
            "created": self.started_at,
            "owned_by": "distserve",
            "max_model_len": self.prompts.window,
        }
