"""What an instance has told the gateways, so that whatever the bus lost can be told again.

Core NATS delivers at most once. A gateway that sees a gap, or hears nothing of a request for a while, asks every
instance what it knows; the answer comes from here. Ended requests are remembered for a while: their last row may be
the lost one.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from shared.messages.tokens import Finish, ResumedTokens, ResumeTokens, TokenBatch, TokenLogprobs, TokenRow
from shared.specs.ids import InstanceId, RequestId

MOST_RESUMED_NUMBERS = 256 << 10  # tokens and log-probabilities of one answer, each 10 bytes at most: under max_payload


class Recipient(NamedTuple):
    """A gateway, and the key that came with a request of its: another may have used its name."""

    gateway: InstanceId
    seal_key: bytes


@dataclass(slots=True)
class _Told:
    attempt: int
    to: Recipient
    start: int  # answer index of tokens[0]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    ended_at: float = 0.0

    def row(self, request: RequestId, index: int, most_tokens: int) -> TokenRow:
        """What is known from `index` on; a later `index` than is known gives an empty row: "I have it, nothing new"."""
        first = min(max(0, index - self.start), len(self.tokens))
        end = min(first + most_tokens, len(self.tokens))
        return TokenRow(
            request=request,
            attempt=self.attempt,
            index=self.start + first,
            tokens=tuple(self.tokens[first:end]),
            logprobs=tuple(self.logprobs[first:end]),
            finish=self.finish if end == len(self.tokens) else None,
        )

    @property
    def numbers_per_token(self) -> int:
        return 3 + 2 * max(len(one.top) for one in self.logprobs) if self.logprobs else 1


class TokenLog:
    """Collects the rows of a step into one TokenBatch per recipient and remembers them. Pure: times are given."""

    def __init__(self, source: InstanceId, keep_seconds: float = 60.0, most_ended: int = 4096) -> None:
        self._source = source
        self._keep_seconds, self._most_ended = keep_seconds, most_ended
        self._told: dict[RequestId, _Told] = {}
        self._ended: OrderedDict[RequestId, None] = OrderedDict()  # in the order of their end
        self._pending: dict[Recipient, list[TokenRow]] = {}
        self._steps: dict[Recipient, int] = {}

    def begin(self, request: RequestId, attempt: int, to: Recipient, start: int) -> None:
        """This instance now answers for the request; its answer goes on at index `start`."""
        self._ended.pop(request, None)
        self._told[request] = _Told(attempt, to, start)

    def note(self, request: RequestId, token: int, logprobs: TokenLogprobs | None) -> None:
        """A token that another instance has told the gateway: known here, not told again."""
        told = self._told[request]
        told.tokens.append(token)
        if logprobs is not None:
            told.logprobs.append(logprobs)

    def tell(self, request: RequestId, token: int, logprobs: TokenLogprobs | None, finish: Finish | None) -> None:
        told = self._told[request]
        self.note(request, token, logprobs)
        row = TokenRow(
            request=request,
            attempt=told.attempt,
            index=told.start + len(told.tokens) - 1,
            tokens=(token,),
            logprobs=(logprobs,) if logprobs is not None else (),
            finish=finish,
        )
        told.finish = finish
        self._pending.setdefault(told.to, []).append(row)

    def end(self, request: RequestId, finish: Finish, now: float) -> None:
        """Close the request's record. If its last row did not say so yet (an abort), a row without tokens does."""
        told = self._told.get(request)
        if told is None:
            return
        if told.finish is None:
            told.finish = finish
            index = told.start + len(told.tokens)
            self._pending.setdefault(told.to, []).append(told.row(request, index, most_tokens=0))
        told.ended_at = now
        self._ended[request] = None

    def forget(self, request: RequestId, attempt: int) -> None:
        """Somebody else answers for it from now on."""
        told = self._told.get(request)
        if told is not None and told.attempt <= attempt:
            del self._told[request]
            self._ended.pop(request, None)

    def batches(self) -> list[tuple[Recipient, TokenBatch]]:
        """What must now be published: at most one batch per recipient, whatever the number of requests."""
        out = []
        for to, rows in self._pending.items():
            step = self._steps.get(to, 0)
            self._steps[to] = step + 1
            out.append((to, TokenBatch(source=self._source, step=step, rows=tuple(rows))))
        self._pending.clear()
        return out

    def resume(self, message: ResumeTokens) -> tuple[ResumedTokens, Recipient | None]:
        """What is known of the wanted, and whom it is for, whoever may have asked; nobody if nothing is known."""
        rows: list[TokenRow] = []
        to: Recipient | None = None
        room = MOST_RESUMED_NUMBERS
        for want in message.wants:
            told = self._told.get(want.request)
            if told is None or told.attempt != want.attempt or told.to.gateway != message.gateway:
                continue
            to = to or told.to
            if told.to == to:
                row = told.row(want.request, want.next_index, room // told.numbers_per_token)
                room -= len(row.tokens) * told.numbers_per_token
                rows.append(row)
        return ResumedTokens(source=self._source, rows=tuple(rows)), to

    def expire(self, now: float) -> None:
        """Drop the records of requests that ended long ago, or of the oldest when there are too many."""
        while self._ended:
            request = next(iter(self._ended))
            if len(self._ended) <= self._most_ended and now - self._told[request].ended_at <= self._keep_seconds:
                return
            del self._ended[request]
            del self._told[request]

    @property
    def live(self) -> int:
        """Requests that this instance answers for and that have not ended."""
        return len(self._told) - len(self._ended)

    def __len__(self) -> int:
        return len(self._told)
