"""The life of one request: from its submission to its end, whatever is lost on the way. Events in, effects out.

The gateway owns a request: it alone has the prompt and every token so far. So one path recovers from every fault:
submit again, with the next attempt and what there is. Tokens are placed by their index in the answer; a repeated one
changes nothing, and behind a gap they wait until the workers have been asked for what is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from services.gateway.errors import ApiError, refusal, unavailable
from services.gateway.events import (
    Ask,
    Asked,
    Effect,
    End,
    Ended,
    Event,
    GivenUp,
    News,
    SchedulerChanged,
    StopFound,
    Submit,
    Unanswered,
)
from shared.messages.requests import MOST_AVOIDED, Accepted, Outcome, Refused, SubmitRequest
from shared.messages.tokens import Finish, RequestInterrupted, TokenLogprobs, TokenRow, Want
from shared.policy.finish import finish_of
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling

MOST_FRUITLESS_ATTEMPTS = 5  # interruptions in a row that brought no more than a first token; the next one is the end
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
SILENCE_SECONDS = 1.0  # then the workers are asked; longer while a request is known to nobody, that is: queued
LONGEST_SILENCE_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to look for somebody who takes a request, in seconds."""

    first: float = 5.0  # nobody has taken it yet: the client can still be told to come again
    recovery: float = 30.0  # it was running: time for a lost instance to be replaced


NEWS = (News(),)
NONE = ()


class RequestLife:
    """One sequence. Changed through `begin` and `step` only: no clock, no bus, no await."""

    def __init__(
        self,
        request: RequestId,
        gateway: InstanceId,
        model: str,
        prompt: tuple[int, ...],
        sampling: Sampling,
        patience: Patience,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.sampling = sampling
        self.attempt = 0
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish: Finish | None = None  # a worker's word that `tokens` is the whole answer
        self.end: End | None = None
        self.taken = False
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self._gateway, self._model, self._patience = gateway, model, patience
        self._ahead: list[TokenRow] = []  # rows behind a gap
        self._submitting_since: float | None = None
        self._pauses = 0
        self._quiet_since = 0.0
        self._silence_seconds = SILENCE_SECONDS
        self._misses = 0  # rounds of asking in a row that did not help
        self._fruitless = 0
        self._avoid: tuple[InstanceId, ...] = ()
        self._tokens_at_submit = 0

    def begin(self, now: float) -> Sequence[Effect]:
        self._submitting_since = now
        return (Submit(self.attempt),)

    def work(self) -> SubmitRequest:
        return SubmitRequest(
            request=self.request,
            attempt=self.attempt,
            gateway=self._gateway,
            model=self._model,
            prompt=self.prompt,
            generated=tuple(self.tokens),
            sampling=self.sampling,
            avoid=self._avoid,
        )

    def seconds_per_token(self) -> float | None:
        """Between the first token and the last; None below two."""
        if self.first_token_at is None or self.last_token_at is None or len(self.tokens) < 2:
            return None
        return (self.last_token_at - self.first_token_at) / (len(self.tokens) - 1)

    def want(self) -> Want | None:
        """What to ask the workers for; None while it is being submitted, or over."""
        if self.end is not None or self._submitting_since is not None:
            return None
        return Want(request=self.request, attempt=self.attempt, next_index=len(self.tokens))

    @property
    def is_offered(self) -> bool:
        """It looks for somebody who takes it."""
        return self.end is None and self._submitting_since is not None

    def is_silent(self, now: float) -> bool:
        """Nothing was heard for so long that the workers should be asked."""
        return self.want() is not None and now - self._quiet_since >= self._silence_seconds

    def step(self, event: Event, now: float) -> Sequence[Effect]:
        """Apply one event; return what must now be done, in order. Once it has ended, nothing changes it."""
        if self.end is not None:
            return NONE
        match event:
            case TokenRow():
                return self._place(event, now)
            case Accepted():
                return self._note_taken(event, now)
            case Refused():
                return self._note_refusal(event, now)
            case RequestInterrupted():
                return self._interrupted(event.attempt, now, event.failed_at)
            case Unanswered():
                return self._look_again(event.attempt, now)
            case Asked():
                return self._note_asked(event, now)
            case SchedulerChanged():
                return self._doubt_place(now)
            case StopFound():
                return self._ended("stop", event.tokens, abort=True)
            case GivenUp():
                return self._ended(event.outcome, len(self.tokens), event.error, abort=True)
            case _:
                assert_never(event)

    # --- tokens

    def _place(self, row: TokenRow, now: float) -> Sequence[Effect]:
        wanted_logprobs = len(row.tokens) if self.sampling.logprobs is not None else 0
        if row.attempt != self.attempt or len(row.logprobs) != wanted_logprobs:
            return NONE
        if row.finish == "aborted":  # not by us: a worker gave it up
            return self._interrupted(row.attempt, now)
        self._note_heard(now)
        if row.index > len(self.tokens):
            self._ahead.append(row)
            return (Ask(),)
        known = len(self.tokens)
        self._append(row)
        while self._ahead and self.finish is None:
            row = min(self._ahead, key=lambda one: one.index)
            if row.index > len(self.tokens):
                break
            self._ahead.remove(row)
            self._append(row)
        if len(self.tokens) > known:
            self.first_token_at = now if self.first_token_at is None else self.first_token_at
            self.last_token_at = now
        if self.finish is not None:
            return self._ended("stop" if self.finish == "stop" else "length", len(self.tokens))
        return NEWS if len(self.tokens) > known else NONE

    def _append(self, row: TokenRow) -> None:
        skip = len(self.tokens) - row.index
        self.tokens.extend(row.tokens[skip:])
        self.logprobs.extend(row.logprobs[skip:])
        if row.finish is not None and row.index + len(row.tokens) == len(self.tokens):
            self.finish = row.finish

    def _note_heard(self, now: float) -> None:
        self.taken = True
        self._submitting_since = None
        self._quiet_since = now
        self._silence_seconds = SILENCE_SECONDS
        self._misses = 0

    # --- submission

    def _note_taken(self, event: Accepted, now: float) -> Sequence[Effect]:
        if event.attempt != self.attempt:
            return NONE
        self._submitting_since = None
        self._quiet_since = now
        first, self.taken = not self.taken, True
        return NEWS if first else NONE

    def _note_refusal(self, event: Refused, now: float) -> Sequence[Effect]:
        """A request that was running is offered again for a while; a new one is refused to its client at once."""
        if event.attempt != self.attempt or self._submitting_since is None:
            return NONE
        final = event.reason in ("too_long", "invalid")
        if not final and (self.taken or event.reason == "draining"):
            return self._look_again(event.attempt, now)
        return self._ended("failed", len(self.tokens), refusal(event, self._model))

    def _look_again(self, attempt: int, now: float) -> Sequence[Effect]:
        if attempt != self.attempt or self._submitting_since is None:
            return NONE
        waited = now - self._submitting_since
        if waited >= (self._patience.recovery if self.taken else self._patience.first):
            error = unavailable(f"Nobody took the request within {waited:.1f} seconds")
            return self._ended("failed", len(self.tokens), error, abort=True)
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**self._pauses)
        self._pauses += 1
        return (Submit(self.attempt, pause),)

    def _interrupted(self, attempt: int, now: float, failed_at: InstanceId | None = None) -> Sequence[Effect]:
        if attempt != self.attempt:
            return NONE
        if failed_at is None:  # nobody else took it, or not for long: better there than nowhere
            self._avoid = ()
        elif failed_at not in self._avoid:
            self._avoid = (*self._avoid, failed_at)[-MOST_AVOIDED:]
        finish = finish_of(self.sampling, self.tokens[-1], len(self.tokens)) if self.tokens else None
        if finish is not None:
            self.finish = finish
            return self._ended("stop" if finish == "stop" else "length", len(self.tokens))
        gained = len(self.tokens) - self._tokens_at_submit
        self._fruitless = 1 if gained > 1 else self._fruitless + 1  # prefill alone brings a first token
        if self._fruitless > MOST_FRUITLESS_ATTEMPTS:
            error = unavailable(f"The request was tried {self._fruitless} times in vain")
            return self._ended("failed", len(self.tokens), error, abort=True)
        return self._submit_again(now)

    def _submit_again(self, now: float) -> Sequence[Effect]:
        self.attempt += 1
        self._ahead.clear()
        self._submitting_since = now
        self._pauses = 0
        self._misses = 0
        self._tokens_at_submit = len(self.tokens)
        return (Submit(self.attempt),)

    def _note_asked(self, event: Asked, now: float) -> Sequence[Effect]:
        """Twice in a row nobody could help: submit again. What waits at the scheduler, if it does, keeps its place."""
        if event.attempt != self.attempt or self._submitting_since is not None:
            return NONE
        self._quiet_since = now
        if event.known and not self._ahead:
            self._misses = 0
            return NONE
        self._misses += 1
        was_running = len(self.tokens) > self._tokens_at_submit or bool(self._ahead)
        if self._misses < 2:  # what was running has no reason to be unknown: make sure at once
            return (Ask(),) if was_running else NONE
        self._silence_seconds = min(LONGEST_SILENCE_SECONDS, 2 * self._silence_seconds)
        return self._submit_again(now) if was_running else self._ask_scheduler(now)

    def _ask_scheduler(self, now: float) -> Sequence[Effect]:
        """The same attempt once more: a scheduler that has it says so, one that does not takes it."""
        self._submitting_since, self._pauses, self._misses = now, 0, 0
        return (Submit(self.attempt),)

    def _doubt_place(self, now: float) -> Sequence[Effect]:
        """What looks for a leader has found it. What waits in a queue is asked about at once, and soon again; what is
        running does not need the scheduler."""
        if self._submitting_since is not None:
            return (Submit(self.attempt),)
        if len(self.tokens) > self._tokens_at_submit:
            return NONE
        self._quiet_since = now
        self._silence_seconds = SILENCE_SECONDS
        return (Ask(),)

    def _ended(
        self, outcome: Outcome, output_tokens: int, error: ApiError | None = None, abort: bool = False
    ) -> Sequence[Effect]:
        self.end = End(outcome, output_tokens, error)
        self._ahead.clear()
        return (Ended(abort, self.taken), *NEWS)
