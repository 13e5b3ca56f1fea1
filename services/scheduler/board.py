"""Which request is where: every live request is in exactly one place, and each way to leave for good is here. Pure."""

from dataclasses import dataclass, field, replace
from typing import Literal

from services.scheduler.events import Abort, Effect, Forget, Interrupt, KvComputed, ReleaseKv, Submitted
from services.scheduler.instances import Fleet, Instance
from services.scheduler.waiting import NOBODY, Drain, Lines, Live
from shared.specs.ids import InstanceId, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Everything on a board, as plain data."""

    live: tuple[Live, ...]
    instances: tuple[Instance, ...]
    gateways: tuple[tuple[InstanceId, float], ...]
    sequence: int
    served: tuple[tuple[str, float], ...] = ()  # journals of earlier versions lack it, and the next
    drain: Drain = field(default_factory=Drain)


class Board:
    """Tables of the dispatcher, kept consistent. A request is in a line here or held by one instance."""

    def __init__(self) -> None:
        self.live: dict[RequestId, Live] = {}
        self.fleet = Fleet()
        self.queue = Lines()  # by model: for an instance that computes the context
        self.kv = Lines()  # by source: for a decode instance
        self.drain = Drain()
        self._sequence = 0

    def picture(self) -> Picture:
        instances, gateways = self.fleet.copy()
        live = tuple(replace(live) for live in self.live.values())
        return Picture(
            live=live,
            instances=instances,
            gateways=gateways,
            sequence=self._sequence,
            served=tuple(self.fleet.served.items()),
            drain=self.drain.copy(),
        )

    @classmethod
    def restore(cls, picture: Picture) -> "Board":
        board = cls()
        board.fleet = Fleet(picture.instances, picture.gateways, picture.served)
        board.drain = picture.drain.copy()
        board._sequence = picture.sequence
        for one in picture.live:
            live = board.live[one.request] = replace(one)
            if live.stage == "queued":
                board.queue.add(live.model, live)
            elif live.stage == "kv_waiting":
                board.kv.add(live.source, live)
        return board

    # -- places -------------------------------------------------------------------------------------------------------

    def take_in(self, facts: Submitted | KvComputed, resumed: bool) -> Live:
        """A request that is new here. It is nowhere yet: `enter` must follow."""
        self._sequence += 1
        live = Live(
            facts.request,
            facts.attempt,
            facts.gateway,
            facts.model,
            facts.context_tokens,
            facts.final_tokens,
            resumed,
            self._sequence,
            facts.now,
        )
        live.avoid = facts.avoid
        self.live[facts.request] = live
        return live

    def adopt(self, instance: Instance, request: RequestId, attempt: int, now: float) -> None:
        """A request that an instance's beat lists and that is not known here: placed by an earlier scheduler."""
        self._sequence += 1
        live = Live(
            request=request,
            attempt=attempt,
            gateway=NOBODY,
            model=instance.model,
            context_tokens=0,
            final_tokens=0,
            resumed=True,
            sequence=self._sequence,
            since=now,
        )
        self.live[request] = live
        self.hold(live, instance, now)

    def enter(self, live: Live, stage: Literal["queued", "kv_waiting"], holder: InstanceId, since: float) -> None:
        """It stands in a line from now on."""
        live.stage, live.holder, live.started, live.since = stage, holder, False, since
        if stage == "kv_waiting":
            self.kv.add(live.source, live)
            return
        if not self.queue.requests:
            self.drain.began(since)
        self.queue.add(live.model, live)

    def hold(self, live: Live, instance: Instance, now: float) -> None:
        """The instance says that it has the request, which is in no line."""
        instance.assign(live, now)
        live.started = True

    def leave(self, live: Live) -> Instance | None:
        """The instance that it leaves, if it is not a line."""
        if live.stage == "queued":
            self.queue.remove(live.model, live)
        elif live.stage == "kv_waiting":
            self.kv.remove(live.source, live)
        elif (holder := self.fleet.get(live.holder)) is not None:
            holder.unassign(live.request)
            return holder
        return None

    # -- endings ------------------------------------------------------------------------------------------------------

    def drop(self, live: Live) -> list[Effect]:
        """It has ended: whoever works on it knows. KV that no decode instance has taken is let go."""
        self.leave(live)
        del self.live[live.request]
        effects: list[Effect] = [Forget(live.request, live.attempt)]
        if live.source != NOBODY and not live.started:
            effects.append(ReleaseKv(live.source, live.request, live.attempt))
        return effects

    def forget_untaken(self) -> list[Live]:
        """Everything that no instance has said it has; what it was."""
        untaken = [live for live in self.live.values() if not live.started]
        for live in untaken:
            self.leave(live)
            del self.live[live.request]
        return untaken

    def revoke(self, live: Live) -> list[Effect]:
        """It has ended, and whoever works on it has to be told."""
        works = live.stage in ("prefilling", "decoding")
        told: list[Effect] = [Abort(request=live.request, attempt=live.attempt)] if works else []
        return told + self.drop(live)

    def interrupt(self, live: Live, reason: str) -> list[Effect]:
        """Back to its gateway. That comes first: the end that an aborted instance reports must find it interrupted."""
        return tell(live, reason) + self.revoke(live)


def tell(live: Live, reason: str, *, wanted: bool = False) -> list[Effect]:
    if live.gateway == NOBODY:  # it will miss the tokens and ask
        return []
    request, attempt = live.request, live.attempt
    return [Interrupt(gateway=live.gateway, request=request, attempt=attempt, reason=reason, wanted=wanted)]
