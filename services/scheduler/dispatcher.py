"""Which instance works on which request. Pure: events in, effects out, in order (DistServe, OSDI'24, section 4.3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from services.scheduler.board import Board, Picture, tell
from services.scheduler.events import (
    Abort,
    Aborted,
    Accept,
    BeatHeard,
    Closing,
    Deposed,
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
from services.scheduler.forecast import SAFETY, seconds_in_line, seconds_to_first_token
from services.scheduler.limits import Limits
from services.scheduler.placement import place_waiting, send
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
        self._times = times or Times()
        self._queue, self._kv = self._board.queue, self._board.kv
        watch = Watch(self._board, limits, self._times)
        self._answer: dict[type[Event], Callable[[Any], list[Effect]]] = {
            Submitted: self._submitted,
            StartAnswered: self._start_answered,
            KvComputed: self._kv_computed,
            KvLost: self._kv_lost,
            Ended: self._ended,
            Aborted: self._aborted,
            BeatHeard: watch.beat_heard,
            Ticked: watch.ticked,
            Closing: self._hand_back_waiting,
            Deposed: self._forget_untaken,
        }

    def step(self, event: Event) -> list[Effect]:
        """Apply one event; return what the caller must now do, in order. What is out of date changes nothing."""
        if self._times.started_at is None:
            self._times.started_at = event.now
        effects = self._answer[type(event)](event)
        return effects + self._place(event.now) if self._queue.requests or self._kv.requests else effects

    @property
    def board(self) -> Board:
        """To be looked at only."""
        return self._board

    @property
    def settled(self) -> bool:
        return self._times.settled

    def snapshot(self) -> Snapshot:
        return Snapshot(limits=self._limits, board=self._board.picture(), times=replace(self._times))

    @classmethod
    def restore(cls, snapshot: Snapshot) -> Self:
        """A dispatcher that decides from here on as the one that `snapshot` was taken of."""
        return cls(snapshot.limits, Board.restore(snapshot.board), replace(snapshot.times))

    def _place(self, now: float) -> list[Effect]:
        return place_waiting(self._board, now) if self._times.settled else []

    # -- from the gateways --------------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted) -> list[Effect]:
        board = self._board
        board.fleet.hear_gateway(event.gateway, event.now)
        known = board.live.get(event.request)
        if known is None:
            return self._admit(event, event.resumed)
        if known.gateway not in (NOBODY, event.gateway):
            return [_refuse(event, "invalid", "another gateway has this request")]
        if event.attempt < known.attempt:
            return [_refuse(event, "invalid", f"attempt {known.attempt} of this request is here already")]
        if event.attempt == known.attempt:
            known.gateway = event.gateway
            return [Accept(event.request, event.attempt)]
        if known.stage != "queued":
            return board.revoke(known) + self._admit(event, resumed=True)
        forgotten = Forget(request=known.request, attempt=known.attempt)
        board.leave(known)  # it keeps its sequence number and with it its place
        known.attempt, known.gateway, known.context_tokens = event.attempt, event.gateway, event.context_tokens
        known.avoid = event.avoid
        board.enter(known, "queued", NOBODY, known.since)
        return [forgotten, Accept(event.request, event.attempt)]

    def _admit(self, event: Submitted, resumed: bool) -> list[Effect]:
        board, held = self._board, False
        if self._times.settled:
            if event.within_seconds and not resumed and (late := self._late(event)) is not None:
                return [late]
            instance = None if board.queue.requests else board.fleet.choose_first(event)
            if instance is not None:  # nobody waits: it need not stand in line
                return [
                    Accept(event.request, event.attempt),
                    send(board, board.take_in(event, resumed), instance, event.now),
                ]
            if not board.fleet.serves(event.model, event.final_tokens):
                if not board.fleet.awaits(event.model):
                    return [self._nobody_serves(event)]
                held = True
        live = board.take_in(event, resumed)
        board.enter(live, "queued", NOBODY, event.now)
        if held:
            board.drain.stopped(event.now)
        placed = self._place(event.now)
        if live.stage == "queued" and not resumed and self._too_many_wait(event):
            board.drop(live)
            message = f"{board.queue.requests} requests with {board.queue.tokens} tokens are waiting"
            return [*placed, _refuse(event, "queue_full", message, self._retry_after(event))]
        return [Accept(event.request, event.attempt), *placed]

    def _too_many_wait(self, event: Submitted) -> bool:
        """Beyond what may wait, or in a line that moves too slowly: not one that stood still while nobody served."""
        limits, queue = self._limits, self._board.queue
        if queue.requests > limits.queue_requests or (queue.tokens > limits.queue_tokens and queue.requests > 1):
            return True
        if not limits.queue_seconds or queue.requests <= limits.queue_always or self._board.drain.interrupted:
            return False
        return seconds_in_line(self._board, event, event.now) > limits.queue_seconds

    def _late(self, event: Submitted) -> Refuse | None:
        """Its client would wait in vain, and others behind it."""
        seconds, limit = seconds_to_first_token(self._board, event, event.now), SAFETY * event.within_seconds
        if seconds is None or seconds <= limit:
            return None
        message = f"its first token would come in {seconds:.1f} s, and is wanted within {event.within_seconds:.1f} s"
        return _refuse(event, "too_late", message, round(min(60.0, max(1.0, seconds - limit)), 1))

    def _nobody_serves(self, event: Submitted) -> Refuse:
        if self._board.fleet.serves(event.model):
            message = f"no instance can hold the {event.final_tokens} tokens that this request may grow to"
            return _refuse(event, "too_long", message)
        message = f"no instance can serve {event.model!r} now"
        return _refuse(event, "no_instance", message, self._limits.no_instance_retry_seconds)

    def _retry_after(self, event: Submitted) -> float:
        """Until what is here now has been computed: 1 to 60 s."""
        seconds = seconds_in_line(self._board, event, event.now) or self._limits.unmeasured_retry_seconds
        return round(min(60.0, max(1.0, seconds)), 1)

    def _ended(self, event: Ended) -> list[Effect]:
        live = self._board.live.get(event.request)
        if live is None or live.attempt > event.attempt:
            return []
        if live.stage == "prefilling" and (holder := self._board.fleet.get(live.holder)) is not None:
            holder.pace.computed(live.context_tokens, event.now)  # it ended with its first token
        return self._board.drop(live)

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
        live, answer = board.live.get(event.request), event.answer
        if answer != "started" and answer != "rejected":
            instance = board.fleet.get(event.instance)
            if instance is not None:
                instance.full = True  # until its next beat
        if live is None or live.attempt != event.attempt:  # given up while the start was on its way
            may_have_it = answer in ("started", "unanswered")
            return [Abort(request=event.request, attempt=event.attempt)] if may_have_it else []
        if live.holder != event.instance or live.started or live.stage not in ("prefilling", "decoding"):
            return []
        match answer:
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
        board = self._board
        effects: list[Effect] = []
        live = board.live.get(event.request)
        if live is not None and event.attempt < live.attempt:
            return [_release(event)]
        if live is not None and event.attempt > live.attempt:
            effects = board.revoke(live)
            live = None
        if live is None:  # placed by an earlier scheduler
            live = board.take_in(event, resumed=True)
        elif live.stage in ("kv_waiting", "decoding"):  # said twice, or computed twice
            return [_release(event)] if live.source not in (event.source, NOBODY) else []
        else:
            holder = board.leave(live)
            if holder is not None:
                holder.pace.computed(live.context_tokens, event.now)
        live.gateway, live.model, live.source = event.gateway, event.model, event.source
        live.context_tokens, live.final_tokens, live.avoid = event.context_tokens, event.final_tokens, event.avoid
        if self._times.settled and not board.kv.requests and not board.queue.requests:
            instance = board.fleet.choose_decode(live)
            if instance is not None:  # nobody waits: it need not stand in line
                effects.append(send(board, live, instance, event.now))
                return effects
        board.enter(live, "kv_waiting", event.source, event.now)
        return effects

    def _kv_lost(self, event: KvLost) -> list[Effect]:
        """A decode instance that was to pull it finds out by itself."""
        live = self._board.live.get(event.request)
        if live is None or (live.attempt, live.holder) != (event.attempt, event.source):
            return []
        return self._board.interrupt(live, "no decode instance took its KV in time")

    def _hand_back_waiting(self, event: Closing) -> list[Effect]:
        waiting = [live for live in self._board.live.values() if live.stage in ("queued", "kv_waiting")]
        return [effect for live in waiting for effect in self._board.interrupt(live, "the scheduler is going away")]

    def _forget_untaken(self, event: Deposed) -> list[Effect]:
        return [Forget(request=live.request, attempt=live.attempt) for live in self._board.forget_untaken()]


def _release(event: KvComputed) -> ReleaseKv:
    return ReleaseKv(source=event.source, request=event.request, attempt=event.attempt)


def _refuse(event: Submitted, reason: RefusalReason, message: str, retry_after_seconds: float = 0.0) -> Refuse:
    return Refuse(
        request=event.request,
        attempt=event.attempt,
        reason=reason,
        message=message,
        retry_after_seconds=retry_after_seconds,
    )
