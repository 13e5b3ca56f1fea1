"""One choice's tokens become text: whole characters, up to a stop string, with log-probabilities beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.gateway.stops import StopStrings
from services.gateway.tokenizer import Tokenizer, detokenizer_behind
from shared.messages.tokens import Finish, TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScoredToken:
    token: int
    logprobs: TokenLogprobs
    offset: int  # in characters, of this token's text within the choice's text


class Piece(NamedTuple):
    """Text that may be shown, and the tokens it came from if log-probabilities were asked for."""

    text: str
    scored: tuple[ScoredToken, ...] = ()


NOTHING = Piece("")


class ChoiceText:
    """Push a choice's tokens in order; get what may be shown. After `stopped`, or `finish`, there is no more.

    `tokens` counts those that belong to the answer: the one that completed a stop string and the model's own stop
    token are counted like any other, what a worker sent after them is not.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str], min_tokens: int) -> None:
        self._detokenizer = detokenizer_behind(prompt, tokenizer)
        self._stops = StopStrings(stops) if stops else None
        self._min_tokens = min_tokens
        self._scored: list[ScoredToken] = []
        self._decoded_chars = 0
        self._shown_chars = 0
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stops is not None and self._stops.found

    def push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], finish: Finish | None) -> Piece:
        """`logprobs`: empty, or one per token. `finish`: the worker's word on the last token, None if it goes on."""
        if self._stops is None and not logprobs:
            self.tokens += len(tokens)
            if finish is None:
                text = self._detokenizer.push(tokens)
                return Piece(text) if text else NOTHING
            visible = tokens[:-1] if finish == "stop" else tokens
            return self._show(self._detokenizer.push(visible) if visible else "", finish)
        text = []
        for position, token in enumerate(tokens):
            self.tokens += 1
            if finish == "stop" and position == len(tokens) - 1:
                break
            if logprobs:
                self._scored.append(ScoredToken(token, logprobs[position], self._decoded_chars))
            text.append(self._until_stop(self._detokenizer.push((token,))))
            if self.stopped:
                break
        return self._show("".join(text), finish)

    def _until_stop(self, text: str) -> str:
        self._decoded_chars += len(text)
        if self._stops is None or self.tokens <= self._min_tokens:
            return text
        return self._stops.push(text)

    def _show(self, text: str, finish: Finish | None) -> Piece:
        if finish is not None and not self.stopped:
            text += self._until_stop(self._detokenizer.finish())
            if self._stops is not None and not self.stopped:
                text += self._stops.finish()
        self._shown_chars += len(text)
        if not self._scored or not (text or finish is not None or self.stopped):
            return Piece(text) if text else NOTHING
        scored = [one for one in self._scored if not self.stopped or one.offset < self._shown_chars]
        self._scored.clear()
        return Piece(text, tuple(scored))
