"""What time and silence do to live requests: beats and ticks. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from services.scheduler.board import Board
from services.scheduler.events import Abort, BeatHeard, Effect, RenewKv, ReportInstance, Ticked
from services.scheduler.instances import Instance
from services.scheduler.limits import Limits
from services.scheduler.waiting import Lines, Live
from shared.specs.ids import InstanceId, RequestId


@dataclass(slots=True)
class Times:
    started_at: float | None = None
    ticked_at: float | None = None
    renewed_at: float = 0.0
    settled: bool = False  # the instances have had the time to say who they are and what they hold


class Watch:
    """Applies beats and ticks to the board."""

    def __init__(self, board: Board, limits: Limits, times: Times) -> None:
        self._board, self._limits = board, limits
        self.times = times

    def beat_heard(self, beat: BeatHeard) -> list[Effect]:
        fleet = self._board.fleet
        if beat.role == "gateway":
            fleet.hear_gateway(beat.instance, beat.now)
        if beat.role not in ("prefill", "decode"):
            return []
        known = fleet.get(beat.instance)
        before = known.state if known is not None else None
        instance = fleet.hear(beat)
        if instance is None:
            return []
        effects = self._hear_of(instance, beat)
        unlisted: list[RequestId] = []
        if instance.held:
            listed = dict(beat.requests)
            if not instance.held.keys() <= listed.keys():
                unlisted = [request for request in instance.held if request not in listed]
        instance.update(beat, unlisted)
        effects += self._drop_unlisted(unlisted, beat.now)
        if instance.state != before:
            effects.append(ReportInstance(instance=instance.id, state=instance.state))
        return effects

    def ticked(self, tick: Ticked) -> list[Effect]:
        now = tick.now
        times, limits, fleet = self.times, self._limits, self._board.fleet
        if times.ticked_at is None or now - times.ticked_at > limits.asleep_seconds:
            fleet.pardon(now)
        times.ticked_at = now
        if times.started_at is not None and now - times.started_at >= limits.settle_seconds:
            times.settled = True
        lost = fleet.remove_lost(now, limits.instance_lost_seconds)
        fleet.note_served(now, limits.return_seconds)
        return [
            *self._lose_instances(lost),
            *self._lose_gateways(fleet.remove_lost_gateways(now, limits.gateway_lost_seconds)),
            *self._give_up(self._board.queue, lambda live: fleet.serves(live.model, live.final_tokens), now),
            *self._give_up(self._board.kv, lambda live: bool(fleet.partners(live.source, live.final_tokens)), now),
            *self._renew(now),
        ]

    def _hear_of(self, instance: Instance, beat: BeatHeard) -> list[Effect]:
        """The requests that it answers for. Nearly always they are those that we have sent it."""
        effects: list[Effect] = []
        lives, holder, now = self._board.live, instance.id, beat.now
        for request, attempt in beat.requests:
            live = lives.get(request)
            if live is None or live.attempt != attempt or live.holder != holder:
                effects += self._listed(instance, request, attempt, now)
            elif live.started:
                live.since = now
        return effects

    def _listed(self, instance: Instance, request: RequestId, attempt: int, now: float) -> list[Effect]:
        """The instance answers for this attempt: news to a fresh scheduler, or an old attempt that missed its abort."""
        board = self._board
        live = board.live.get(request)
        if live is not None and attempt < live.attempt:
            return [Abort(request=request, attempt=attempt)]
        effects: list[Effect] = []
        if live is not None and attempt > live.attempt:
            effects = board.revoke(live)
            live = None
        if live is None:
            board.adopt(instance, request, attempt, now)
        elif live.stage == "queued" or (instance.role == "decode" and live.stage != "decoding"):
            board.leave(live)
            board.hold(live, instance, now)
        return effects

    def _drop_unlisted(self, unlisted: list[RequestId], now: float) -> list[Effect]:
        """What has ended unheard. If it has not, its gateway misses the tokens and submits it again."""
        lives, most = self._board.live, self._limits.unlisted_seconds
        gone = [lives[r] for r in unlisted if lives[r].started and now - lives[r].since > most]
        return [effect for live in gone for effect in self._board.drop(live)]

    def _lose_instances(self, lost: list[InstanceId]) -> list[Effect]:
        effects: list[Effect] = []
        for instance in lost:
            effects.append(ReportInstance(instance=instance, state="lost"))
            for live in [live for live in self._board.live.values() if live.holder == instance]:
                effects += self._board.interrupt(live, f"{instance} is lost")
        return effects

    def _lose_gateways(self, lost: set[InstanceId]) -> list[Effect]:
        """Its clients are gone with it."""
        theirs = [live for live in self._board.live.values() if live.gateway in lost]
        return [effect for live in theirs for effect in self._board.revoke(live)]

    def _give_up(self, lines: Lines, can_be_served: Callable[[Live], bool], now: float) -> list[Effect]:
        """Heads of lines that nobody can serve any more: those behind them must not wait for ever."""
        effects: list[Effect] = []
        fleet, patience = self._board.fleet, self._limits.patience_seconds
        for name in lines.names():
            while (request := lines.head(name)) is not None:
                live = self._board.live[request]
                if now - live.since <= patience or can_be_served(live) or fleet.awaits(live.model):
                    break
                effects += self._board.interrupt(live, "no instance can serve it any more")
        return effects

    def _renew(self, now: float) -> list[Effect]:
        if now - self.times.renewed_at < self._limits.renew_seconds:
            return []
        self.times.renewed_at = now
        live, kv = self._board.live, self._board.kv
        return [
            RenewKv(source=InstanceId(name), requests=tuple((r, live[r].attempt) for r in kv.members(name)))
            for name in kv.names()
        ]
