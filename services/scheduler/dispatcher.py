"""Which instance works on which request. Pure: events in, effects out, in order (DistServe, OSDI'24, section 4.3)."""

from dataclasses import dataclass, replace
from typing import Self, assert_never

from services.scheduler.board import Board, Picture, tell
from services.scheduler.events import (
    Abort,
    Aborted,
    Accept,
    BeatHeard,
    Closing,
    Effect,
    Ended,
    Event,
    Forget,
    KvComputed,
    KvLost,
    Refuse,
    ReleaseKv,
    StartAnswered,
    Submitted,
    Ticked,
)
from services.scheduler.limits import Limits
from services.scheduler.placement import place_waiting
from services.scheduler.waiting import NOBODY
from services.scheduler.watch import Times, Watch
from shared.messages.requests import RefusalReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a Dispatcher knows, as plain data."""

    limits: Limits
    board: Picture
    times: Times


class Dispatcher:
    """Where every live request is and who works on it. Changed through `step` only: no clock, no socket, no await."""

    def __init__(self, limits: Limits, board: Board | None = None, times: Times | None = None) -> None:
        self._limits = limits
        self._board = board or Board()
        self._watch = Watch(self._board, limits, times or Times())
        self._now = 0.0

    def step(self, event: Event) -> list[Effect]:
        """Apply one event; return what the caller must now do, in order. What is out of date changes nothing."""
        self._now = event.now
        if self._watch.times.started_at is None:
            self._watch.times.started_at = event.now
        effects = self._apply(event)
        board = self._board
        return effects + self._place() if board.queue.requests or board.kv.requests else effects

    def _apply(self, event: Event) -> list[Effect]:
        match event:
            case Submitted():
                return self._submitted(event)
            case StartAnswered():
                return self._start_answered(event)
            case KvComputed():
                return self._kv_computed(event)
            case KvLost():
                return self._kv_lost(event)
            case Ended():
                return self._ended(event)
            case Aborted():
                return self._aborted(event)
            case BeatHeard():
                return self._watch.beat_heard(event)
            case Ticked():
                return self._watch.ticked(event.now)
            case Closing():
                return self._hand_back_waiting()
            case _:
                assert_never(event)

    @property
    def board(self) -> Board:
        """To be looked at only."""
        return self._board

    @property
    def settled(self) -> bool:
        return self._watch.times.settled

    def snapshot(self) -> Snapshot:
        return Snapshot(limits=self._limits, board=self._board.picture(), times=replace(self._watch.times))

    @classmethod
    def restore(cls, snapshot: Snapshot) -> Self:
        """A dispatcher that decides from here on as the one that `snapshot` was taken of."""
        return cls(snapshot.limits, Board.restore(snapshot.board), replace(snapshot.times))

    def _place(self) -> list[Effect]:
        return place_waiting(self._board, self._now) if self.settled else []

    # -- from the gateways --------------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted) -> list[Effect]:
        board = self._board
        board.fleet.hear_gateway(event.gateway, event.now)
        known = board.live.get(event.request)
        if known is None:
            return self._admit(event, event.resumed)
        if event.attempt < known.attempt:
            return [_refuse(event, "invalid", f"attempt {known.attempt} of this request is here already")]
        if event.attempt == known.attempt:
            known.gateway = event.gateway
            return [_accept(event)]
        if known.stage != "queued":
            return board.revoke(known) + self._admit(event, resumed=True)
        forgotten = Forget(request=known.request, attempt=known.attempt)
        board.leave(known)  # it keeps its sequence number and with it its place
        known.attempt, known.gateway, known.context_tokens = event.attempt, event.gateway, event.context_tokens
        board.enter(known, "queued", NOBODY, known.since)
        return [forgotten, _accept(event)]

    def _admit(self, event: Submitted, resumed: bool) -> list[Effect]:
        board, limits = self._board, self._limits
        if self.settled and not board.fleet.serves(event.model, event.final_tokens):
            return [self._nobody_serves(event)]
        live = board.take_in(event, resumed)
        board.enter(live, "queued", NOBODY, event.now)
        placed = self._place()
        queue = board.queue
        too_many = queue.requests > limits.queue_requests or (queue.tokens > limits.queue_tokens and queue.requests > 1)
        if live.stage == "queued" and too_many and not resumed:
            board.drop(live)
            message = f"{queue.requests} requests with {queue.tokens} tokens are waiting"
            return [*placed, _refuse(event, "queue_full", message, self._seconds_to_drain())]
        return [_accept(event), *placed]

    def _nobody_serves(self, event: Submitted) -> Refuse:
        if self._board.fleet.serves(event.model):
            message = f"no instance can hold the {event.final_tokens} tokens that this request may grow to"
            return _refuse(event, "too_long", message)
        message = f"no instance can serve {event.model!r} now"
        return _refuse(event, "no_instance", message, self._limits.no_instance_retry_seconds)

    def _seconds_to_drain(self) -> float:
        """Until what waits now is gone, at the rate of the last seconds: 1 to 60 s."""
        rate = self._board.drain.tokens_per_second(self._now)
        seconds = self._board.queue.tokens / rate if rate else self._limits.unmeasured_retry_seconds
        return round(min(60.0, max(1.0, seconds)), 1)

    def _ended(self, event: Ended) -> list[Effect]:
        live = self._board.live.get(event.request)
        return self._board.drop(live) if live is not None and live.attempt <= event.attempt else []

    def _aborted(self, event: Aborted) -> list[Effect]:
        """An instance that has the request tells its gateway of the end; where there is none, we do."""
        live = self._board.live.get(event.request)
        if live is None or live.attempt > event.attempt:
            return []
        told = [] if live.started else tell(live, "aborted before an instance had it", wanted=True)
        return told + self._board.drop(live)

    # -- from the instances -------------------------------------------------------------------------------------------

    def _start_answered(self, event: StartAnswered) -> list[Effect]:
        board = self._board
        instance, live = board.fleet.get(event.instance), board.live.get(event.request)
        if instance is not None and event.answer in ("full", "unreachable", "unanswered"):
            instance.full = True  # until its next beat
        if live is None or live.attempt != event.attempt:  # given up while the start was on its way
            may_have_it = event.answer in ("started", "unanswered")
            return [Abort(request=event.request, attempt=event.attempt)] if may_have_it else []
        if live.holder != event.instance or live.started or live.stage not in ("prefilling", "decoding"):
            return []
        match event.answer:
            case "started":
                live.started, live.since = True, event.now
                return []
            case "full" | "unreachable":
                board.leave(live)
                board.enter(live, "queued" if live.source == NOBODY else "kv_waiting", live.source, event.now)
                return []
            case "rejected":
                return board.interrupt(live, f"{event.instance} rejected it")
            case "unanswered":
                return board.interrupt(live, f"{event.instance} did not answer")

    def _kv_computed(self, event: KvComputed) -> list[Effect]:
        board, effects = self._board, list[Effect]()
        live = board.live.get(event.request)
        release = ReleaseKv(source=event.source, request=event.request, attempt=event.attempt)
        if live is not None and event.attempt < live.attempt:
            return [release]
        if live is not None and event.attempt > live.attempt:
            effects = board.revoke(live)
            live = None
        if live is None:  # placed by an earlier scheduler
            live = board.take_in(event, resumed=True)
        elif live.stage in ("kv_waiting", "decoding"):  # said twice, or computed twice
            return [release] if live.source not in (event.source, NOBODY) else []
        else:
            board.leave(live)
        live.gateway, live.model, live.source = event.gateway, event.model, event.source
        live.context_tokens, live.final_tokens = event.context_tokens, event.final_tokens
        board.enter(live, "kv_waiting", event.source, event.now)
        return effects

    def _kv_lost(self, event: KvLost) -> list[Effect]:
        """A decode instance that was to pull it finds out by itself."""
        live = self._board.live.get(event.request)
        if live is None or (live.attempt, live.holder) != (event.attempt, event.source):
            return []
        return self._board.interrupt(live, "no decode instance took its KV in time")

    def _hand_back_waiting(self) -> list[Effect]:
        waiting = [live for live in self._board.live.values() if live.stage in ("queued", "kv_waiting")]
        return [effect for live in waiting for effect in self._board.interrupt(live, "the scheduler is going away")]


def _accept(event: Submitted) -> Accept:
    return Accept(request=event.request, attempt=event.attempt)


def _refuse(event: Submitted, reason: RefusalReason, message: str, retry_after_seconds: float = 0.0) -> Refuse:
    return Refuse(
        request=event.request,
        attempt=event.attempt,
        reason=reason,
        message=message,
        retry_after_seconds=retry_after_seconds,
    )
