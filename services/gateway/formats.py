"""The OpenAI routes' JSON answers: whole ones, and the chunks of a stream.

What stays the same in every chunk of a call is written once; a chunk is then a few concatenations.
"""

import json
import time
from typing import Any, Protocol

from services.gateway.answer import Answer, Choice, Usage
from services.gateway.openai import Options
from services.gateway.spans import Operation
from services.gateway.text import Piece, ScoredToken
from services.gateway.tokenizer import Tokenizer
from shared.messages.tokens import Finish

LEAST_LOGPROB = -9999.0  # JSON has no infinity

Parts = list[tuple[Choice, list[Piece]]]


class Form(Protocol):
    """How one of the two routes writes its answers."""

    operation: Operation
    name: str  # the answer's id

    def opening(self, choice: Choice) -> bytes:
        """The event before a choice's first text; may be empty."""
        ...

    def chunk(self, choice: Choice, piece: Piece) -> bytes: ...

    def usage(self, usage: Usage) -> bytes: ...

    def whole(self, answer: Answer, parts: Parts) -> bytes: ...


class _Chunks:
    """The frame around the chunks of one call."""

    def __init__(self, call: str, kind: str, model: str, include_usage: bool) -> None:
        self.head = {"id": call, "object": kind, "created": int(time.time()), "model": model}
        self._start = b"data: " + json.dumps(self.head).encode()[:-1] + b', "choices": ['
        self._end = b'], "usage": null}\n\n' if include_usage else b"]}\n\n"

    def event(self, index: int, content: str, finish: Finish | None, usage: Usage | None = None) -> bytes:
        """`content`: the choice's other members, as JSON. `usage`: of the choice so far, if it is to be told."""
        reason = "null" if finish is None else f'"{finish}"'
        choice = f'{{"index": {index}, {content}, "finish_reason": {reason}}}'
        if usage is not None:
            return self._start + choice.encode() + b'], "usage": ' + json.dumps(usage_json(usage)).encode() + b"}\n\n"
        return self._start + choice.encode() + self._end

    def usage(self, usage: Usage) -> bytes:
        return self._start + b'], "usage": ' + json.dumps(usage_json(usage)).encode() + b"}\n\n"


class ChatForm:
    operation: Operation = "chat"

    def __init__(self, call: str, model: str, tokenizer: Tokenizer, options: Options) -> None:
        self.name = call
        self._tokenizer, self._tells_usage = tokenizer, options.continuous_usage
        self._chunks = _Chunks(call, "chat.completion.chunk", model, options.include_usage)
        self.usage = self._chunks.usage

    def opening(self, choice: Choice) -> bytes:
        delta = '"delta": {"role": "assistant", "content": ""}, "logprobs": null'
        return self._chunks.event(choice.index, delta, None)

    def chunk(self, choice: Choice, piece: Piece) -> bytes:
        delta = f'{{"content": {json.dumps(piece.text)}}}' if piece.text else "{}"
        logprobs = json.dumps(self._logprobs(piece.scored)) if piece.scored else "null"
        usage = _usage_so_far(choice) if self._tells_usage else None
        return self._chunks.event(choice.index, f'"delta": {delta}, "logprobs": {logprobs}', choice.finish, usage)

    def whole(self, answer: Answer, parts: Parts) -> bytes:
        choices = []
        for choice, pieces in parts:
            scored = tuple(one for piece in pieces for one in piece.scored)
            message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
            logprobs = self._logprobs(scored) if choice.live.life.sampling.logprobs is not None else None
            choices.append(
                {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
            )
        head = self._chunks.head | {"object": "chat.completion"}
        return json.dumps(head | {"choices": choices, "usage": usage_json(answer.usage())}).encode()

    def _logprobs(self, scored: tuple[ScoredToken, ...]) -> dict[str, Any]:
        content = []
        for one in scored:
            top = [self._token(token, logprob) for token, logprob in one.logprobs.top]
            content.append(self._token(one.token, one.logprobs.token) | {"top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}


class CompletionForm:
    operation: Operation = "text_completion"

    def __init__(self, call: str, model: str, tokenizer: Tokenizer, options: Options) -> None:
        self.name = call
        self._tokenizer, self._tells_usage = tokenizer, options.continuous_usage
        self._chunks = _Chunks(call, "text_completion", model, options.include_usage)
        self.usage = self._chunks.usage

    def opening(self, choice: Choice) -> bytes:
        return b""

    def chunk(self, choice: Choice, piece: Piece) -> bytes:
        logprobs = json.dumps(self._logprobs(piece.scored)) if piece.scored else "null"
        usage = _usage_so_far(choice) if self._tells_usage else None
        content = f'"text": {json.dumps(piece.text)}, "logprobs": {logprobs}'
        return self._chunks.event(choice.index, content, choice.finish, usage)

    def whole(self, answer: Answer, parts: Parts) -> bytes:
        choices = []
        for choice, pieces in parts:
            scored = tuple(one for piece in pieces for one in piece.scored)
            logprobs = self._logprobs(scored) if choice.live.life.sampling.logprobs is not None else None
            text = "".join(piece.text for piece in pieces)
            choices.append({"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish})
        return json.dumps(self._chunks.head | {"choices": choices, "usage": usage_json(answer.usage())}).encode()

    def _logprobs(self, scored: tuple[ScoredToken, ...]) -> dict[str, Any]:
        text = self._tokenizer.token_text
        tops = []
        for one in scored:
            top = {text(token): _finite(logprob) for token, logprob in one.logprobs.top}
            tops.append(top | {text(one.token): _finite(one.logprobs.token)})
        return {
            "tokens": [text(one.token) for one in scored],
            "token_logprobs": [_finite(one.logprobs.token) for one in scored],
            "top_logprobs": tops,
            "text_offset": [one.offset for one in scored],
        }


def _usage_so_far(choice: Choice) -> Usage:
    return Usage(len(choice.live.life.prompt), choice.text.tokens)


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _finite(logprob: float) -> float:
    return max(LEAST_LOGPROB, logprob)
