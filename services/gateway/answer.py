"""The answer to one HTTP call while it comes into being: one or more choices, each a request of its own."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from services.gateway.errors import ApiError
from services.gateway.events import GivenUp, StopFound
from services.gateway.live import LiveRequest
from services.gateway.model import ServedModel
from services.gateway.openai import Options
from services.gateway.outbox import Bell
from services.gateway.service import GatewayService
from services.gateway.targets import LatencyTargets
from services.gateway.text import ChoiceText, Piece
from shared.messages.requests import Outcome
from shared.messages.tokens import Finish
from shared.specs.ids import RequestId
from shared.specs.sampling import Sampling

SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


class Choice:
    """One sequence's text as it grows."""

    def __init__(self, index: int, live: LiveRequest, text: ChoiceText) -> None:
        self.index = index
        self.live = live
        self.text = text
        self.finish: Finish | None = None  # "stop" or "length" once all its text was taken

    @property
    def error(self) -> ApiError | None:
        return None if self.finish is not None or self.live.life.end is None else self.live.life.end.error


class Answer:
    """Begins the requests of a call, and gives out their text as it comes. Belongs to one task."""

    def __init__(
        self,
        service: GatewayService,
        model: ServedModel,
        options: Options,
        call: str,
        arrived_at: float,
        targets: LatencyTargets,
    ) -> None:
        """`arrived_at`: of the call's last byte, on the monotonic clock."""
        self._service, self._model, self._options = service, model, options
        self._call, self._arrived_at, self._targets = call, arrived_at, targets
        self.bell = Bell(service.outbox)
        self._prompt_tokens = 0
        self.choices: list[Choice] = []

    def begin(self, prompts: Sequence[tuple[int, ...]], max_tokens: Sequence[int]) -> None:
        """Submit `n` requests for each prompt. `max_tokens`: one per prompt."""
        options = self._options
        try:
            for prompt, limit in zip(prompts, max_tokens, strict=True):
                seed = secrets.randbits(SEED_BITS) if options.seed is None else options.seed
                self._prompt_tokens += len(prompt)
                for number in range(options.n):
                    sampling = sampling_of(options, limit, seed_of(seed, number), self._model.stop_token_ids)
                    request = RequestId(f"{self._call}-{len(self.choices)}")
                    live = self._service.begin(request, prompt, sampling, self._arrived_at, self.bell, self._targets)
                    text = ChoiceText(self._model.tokenizer, prompt, options.stops, options.min_tokens)
                    self.choices.append(Choice(len(self.choices), live, text))
        except ApiError as error:
            self.give_up(error, "aborted")
            raise

    async def taken(self) -> None:
        """Wait until every request has been taken. ApiError if one was refused: it can still be the whole response."""
        while True:
            self._raise_error()
            if all(choice.live.life.taken for choice in self.choices):
                return
            await self.bell.wait()

    def take(self) -> list[tuple[Choice, Piece]]:
        """What is new since the last call; an empty piece where a choice finished without more text."""
        taken = []
        for choice in self.choices:
            if choice.finish is None:
                piece = self._advance(choice)
                if piece.text or choice.finish is not None:
                    taken.append((choice, piece))
        return taken

    def _advance(self, choice: Choice) -> Piece:
        tokens, logprobs, finish = choice.live.take()
        if not tokens and finish is None:
            return Piece("")
        piece = choice.text.push(tokens, logprobs, finish)
        if choice.text.stopped:
            choice.finish = "stop"
            self._service.feed(choice.live, StopFound(choice.text.tokens))
        else:
            choice.finish = finish
        return piece

    @property
    def done(self) -> bool:
        return all(choice.finish is not None for choice in self.choices)

    @property
    def over(self) -> bool:
        """Nothing more will come of it, complete or not."""
        for choice in self.choices:
            if choice.finish is None:
                return self.error is not None
        return True

    @property
    def error(self) -> ApiError | None:
        """Why the answer will not be complete; None if it is, or still may be."""
        return next((choice.error for choice in self.choices if choice.error is not None), None)

    def usage(self) -> Usage:
        return Usage(self._prompt_tokens, sum(choice.text.tokens for choice in self.choices))

    def give_up(self, error: ApiError, outcome: Outcome) -> None:
        """End what still runs."""
        for choice in self.choices:
            if choice.live.life.end is None:
                self._service.feed(choice.live, GivenUp(error, outcome))

    def _raise_error(self) -> None:
        if self.error is not None:
            error = self.error
            self.give_up(error, "aborted")
            raise error


def sampling_of(options: Options, max_tokens: int, seed: int, stop_token_ids: tuple[int, ...]) -> Sampling:
    stops = options.stop_token_ids if options.ignore_eos else (*stop_token_ids, *options.stop_token_ids)
    return Sampling(
        max_tokens=max_tokens,
        seed=seed,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repetition_penalty,
        logit_bias=options.logit_bias,
        logprobs=options.logprobs,
        min_tokens=options.min_tokens,
        stop_token_ids=tuple(dict.fromkeys(stops)),
    )


def seed_of(seed: int, number: int) -> int:
    """The seed of the `number`th choice: the first one's is the call's own, the others' have nothing to do with it."""
    mixed = seed
    if number:  # splitmix64
        mixed = (seed + number * 0x9E3779B97F4A7C15) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        mixed ^= mixed >> 31
    return mixed & (2**SEED_BITS - 1)
