"""From what a client sent to the token ids of its prompts, and how much may come after them."""

import time
from collections.abc import Sequence

from services.gateway.errors import bad_value, context_too_long
from services.gateway.model import ServedModel
from services.gateway.openai import ChatCall, CompletionCall, Options, check_token_ids
from services.gateway.topology import Topology
from shared.telemetry import traces

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


class Prompts:
    def __init__(self, model: ServedModel, topology: Topology) -> None:
        self._model, self._topology = model, topology

    @property
    def window(self) -> int:
        """The longest sequence that can be served now, prompt and answer together."""
        return min(self._model.most_tokens, self._topology.most_tokens(time.monotonic()) or self._model.most_tokens)

    async def of_chat(self, call: ChatCall) -> tuple[int, ...]:
        with traces.tracer().start_as_current_span(traces.GATEWAY_TOKENIZE) as span:
            text = self.chat_text(call.messages)
            tokens = await self._encode(text, "messages", special_tokens=False)
            span.set_attribute(traces.INPUT_TOKENS, len(tokens))
        self._check_ids(call.options)
        return tokens

    async def of_completion(self, call: CompletionCall) -> list[tuple[int, ...]]:
        with traces.tracer().start_as_current_span(traces.GATEWAY_TOKENIZE) as span:
            prompts = []
            for prompt in call.prompts:
                if isinstance(prompt, str):
                    prompt = await self._encode(prompt, "prompt", special_tokens=True)
                check_token_ids(prompt, self._model.vocabulary, "prompt")
                prompts.append(prompt)
            span.set_attribute(traces.INPUT_TOKENS, sum(len(prompt) for prompt in prompts))
        self._check_ids(call.options)
        return prompts

    def chat_text(self, messages: Sequence[dict[str, str]]) -> str:
        if self._model.template is None:
            message = f"The model '{self._model.name}' has no chat template; use /v1/completions"
            raise bad_value("messages", message, "no_chat_template")
        return self._model.template.render(messages)

    def room(self, options: Options, prompt: tuple[int, ...], param: str, default: int | None) -> int:
        """`max_tokens` of the answer. Not asked for: `default`, or all that is left of the context window."""
        window = self.window
        left = window - len(prompt)
        wanted = options.max_tokens
        if left < (wanted or 1):
            raise context_too_long(window, len(prompt), wanted or 1, param)
        return wanted or min(left, default or left)

    async def _encode(self, text: str, param: str, special_tokens: bool) -> tuple[int, ...]:
        at_least = len(text) // self._model.tokenizer.longest_chars
        if at_least > self.window:  # no need to find out by how much
            raise context_too_long(self.window, at_least, 1, param)
        tokens = tuple(await self._model.tokenizer.encode(text, special_tokens))
        if not tokens:
            raise bad_value(param, f"'{param}' is empty: there is nothing to go on from")
        return tokens

    def _check_ids(self, options: Options) -> None:
        check_token_ids((token for token, _ in options.logit_bias), self._model.vocabulary, "logit_bias")
        check_token_ids(options.stop_token_ids, self._model.vocabulary, "stop_token_ids")
