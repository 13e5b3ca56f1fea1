"""POST /v1/chat/completions and POST /v1/completions."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway import spans
from services.gateway.answer import Answer
from services.gateway.body import BodyReader
from services.gateway.errors import unknown_model
from services.gateway.formats import ChatForm, CompletionForm, Form
from services.gateway.model import ServedModel
from services.gateway.openai import Options, read_chat, read_completion
from services.gateway.prompts import DEFAULT_COMPLETION_TOKENS, Prompts
from services.gateway.service import GatewayService
from services.gateway.stream import EventStream, collect, given_up_when_client_leaves
from services.gateway.targets import LatencyTargets

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What both routes need."""

    service: GatewayService
    model: ServedModel
    prompts: Prompts
    body: BodyReader
    keep_alive_seconds: float
    targets: LatencyTargets  # of requests that name none

    def check(self, scope: Scope, options: Options, prompts: int = 1) -> None:
        """ApiError if it asks for another model, or for more than its key may have."""
        if options.model != self.model.name:
            raise unknown_model(options.model)
        if options.ignored:
            log.warning("unknown_fields_ignored", fields=options.ignored)
        scope["state"]["share"].grow_to(prompts * options.n)

    async def respond(
        self,
        exchange: tuple[Scope, Receive, Send],
        options: Options,
        prompts: Sequence[tuple[int, ...]],
        max_tokens: Sequence[int],
        form: Form,
    ) -> None:
        scope, receive, send = exchange
        targets = self.targets.or_of(Headers(scope=scope))
        call, arrived_at = scope["state"]["call"], scope["state"]["arrived_at"]
        answer = Answer(self.service, self.model, options, call, arrived_at, targets)
        spans.describe_request(form.operation, options, targets, call, form.name)
        try:
            async with given_up_when_client_leaves(answer, receive):
                answer.begin(prompts, max_tokens)
                await answer.taken()
                self.service.metrics.overhead_seconds.observe(time.monotonic() - arrived_at)
                if options.stream:
                    gaps = self.service.metrics.inter_token_seconds
                    connection = scope["state"]["connection"]
                    stream = EventStream(send, connection, self.keep_alive_seconds, gaps, options.include_usage)
                    await stream.write(answer, form)
                else:
                    body = await collect(answer, form)
                    await Response(body, media_type="application/json")(scope, receive, send)
        finally:
            spans.describe_answer(answer, arrived_at)


@dataclass(frozen=True, slots=True)
class ChatCompletions:
    generation: Generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation, model = self.generation, self.generation.model
        call = read_chat(await generation.body.json(scope, receive))
        generation.check(scope, call.options)
        prompt = await generation.prompts.of_chat(call)
        room = generation.prompts.room(call.options, prompt, "messages", default=None)
        form = ChatForm(_name("chatcmpl", scope), model.name, model.tokenizer, call.options)
        await generation.respond((scope, receive, send), call.options, [prompt], [room], form)


@dataclass(frozen=True, slots=True)
class Completions:
    generation: Generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation, model = self.generation, self.generation.model
        call = read_completion(await generation.body.json(scope, receive), generation.prompts.window)
        generation.check(scope, call.options, len(call.prompts))
        prompts = await generation.prompts.of_completion(call)
        rooms = [
            generation.prompts.room(call.options, prompt, "prompt", DEFAULT_COMPLETION_TOKENS) for prompt in prompts
        ]
        form = CompletionForm(_name("cmpl", scope), model.name, model.tokenizer, call.options)
        await generation.respond((scope, receive, send), call.options, prompts, rooms, form)


def _name(kind: str, scope: Scope) -> str:
    return f"{kind}-{scope['state']['call']}"
