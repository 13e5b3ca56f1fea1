"""Who is alive, what it can do and how loaded it is. Pure: silence is measured with the times that are given."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.scheduler.events import BeatHeard, InstanceState
from services.scheduler.pace import Pace
from services.scheduler.waiting import Live
from shared.kv.layout import blocks_for
from shared.messages.instances import Capacity, Load
from shared.specs.ids import InstanceId, RequestId, Role


class Work(Protocol):
    """A request, as far as it matters to where it goes."""

    @property
    def model(self) -> str: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def final_tokens(self) -> int: ...
    @property
    def avoid(self) -> tuple[InstanceId, ...]: ...


@dataclass(slots=True)
class Instance:
    """A prefill or decode instance: its last beat, and what this scheduler has done since."""

    id: InstanceId
    role: Role
    number: int = -1  # of its last beat
    heard_at: float = 0.0
    model: str = ""
    ready: bool = False
    draining: bool = False
    colocated: bool = False
    kv_format: str = ""
    capacity: Capacity = field(default_factory=Capacity)
    load: Load = field(default_factory=Load)
    linked: tuple[InstanceId, ...] = ()
    full: bool = False  # has refused work since its last beat
    held: dict[RequestId, int] = field(default_factory=dict)  # context tokens of what it works on for us
    held_tokens: int = 0
    pace: Pace = field(default_factory=Pace)  # at which it computes contexts
    foreign_tokens: int = 0  # queued there by others: an earlier scheduler's
    # Of a decode instance only:
    promised_requests: int = 0  # sent since its last beat, less what has ended since: may be negative
    promised_blocks: int = 0  # the same in KV blocks

    @property
    def state(self) -> InstanceState:
        return "draining" if self.draining else "ready" if self.ready else "not_ready"

    @property
    def takes_work(self) -> bool:
        return self.ready and not self.draining

    def assign(self, live: Live, now: float) -> None:
        """It works on the request, or is being sent it."""
        tokens = live.context_tokens
        live.holder, live.started, live.since = self.id, False, now
        self.held[live.request] = tokens
        self.held_tokens += tokens
        if self.role == "prefill":
            live.stage = "prefilling"
            return
        live.stage = "decoding"
        self.promised_requests += 1
        self.promised_blocks += tokens // (self.capacity.block_tokens or 1) + 1

    def unassign(self, request: RequestId) -> None:
        tokens = self.held.pop(request)
        self.held_tokens -= tokens
        if self.role != "prefill":
            self.promised_requests -= 1
            self.promised_blocks -= tokens // (self.capacity.block_tokens or 1) + 1

    def differs(self, beat: BeatHeard) -> bool:
        """Whether it is another instance now to those who look for one, whatever its load."""
        return (
            (self.ready, self.draining, self.colocated, self.model, self.kv_format)
            != (beat.ready, beat.draining, beat.colocated, beat.model, beat.kv_format)
            or self.linked != beat.linked
            or self.capacity != beat.capacity
        )

    def update(self, beat: BeatHeard, unlisted: list[RequestId]) -> None:
        """`unlisted`: what it holds for us and the beat does not list."""
        self.number, self.heard_at, self.full = beat.number, beat.now, False
        self.model, self.kv_format, self.linked = beat.model, beat.kv_format, beat.linked
        self.ready, self.draining, self.colocated = beat.ready, beat.draining, beat.colocated
        self.capacity, self.load = beat.capacity, beat.load
        self.promised_requests = len(unlisted)
        self.promised_blocks = sum(self._blocks(self.held[request] + 1) for request in unlisted)
        self.foreign_tokens = max(0, beat.load.queued_tokens - self.held_tokens)

    @property
    def prefill_rank(self) -> tuple[int, int, InstanceId]:
        """Least queued work first."""
        return (self.held_tokens + self.foreign_tokens, len(self.held), self.id)

    def prefill_has_room(self, work: Work) -> bool:
        """An idle instance takes any prompt. Else what it holds is bounded: the rest waits here, and finds balance."""
        queued_tokens = self.held_tokens + self.foreign_tokens
        if self.full:
            return False
        if not self.held and not queued_tokens:
            return True
        fits = queued_tokens + work.context_tokens <= self.capacity.max_queue_tokens
        return fits and len(self.held) < self.capacity.max_queue_requests

    @property
    def decode_rank(self) -> tuple[int, int, InstanceId]:
        """Most free blocks after what is promised first, then the smallest batch."""
        return (-self._free_blocks, self._sequences, self.id)

    def decode_has_room(self, work: Work) -> bool:
        """It can run the request at once, or lets it wait: whatever more there is waits better here."""
        if self.full:
            return False
        waiting = self.load.queued_requests + self.promised_requests
        if waiting < self.capacity.max_queue_requests or (sequences := self._sequences) <= 0:
            return True
        needed = self._blocks(work.context_tokens + 1)
        return sequences < self.capacity.max_batch and needed + sequences <= self._free_blocks

    @property
    def _free_blocks(self) -> int:
        return self.load.free_blocks - self._blocks(self.load.queued_tokens) - self.promised_blocks

    @property
    def _sequences(self) -> int:
        return self.load.running + self.load.queued_requests + self.promised_requests

    def _blocks(self, tokens: int) -> int:
        return blocks_for(tokens, self.capacity.block_tokens or 1)


@dataclass(slots=True)
class _Choice:
    """Instances that can do a kind of work, whatever their load."""

    instances: list[Instance]
    longest: list[int]  # sequence that each can take
    shortest: int  # of those

    def holding(self, tokens: int) -> list[Instance]:
        return [instance for instance, most in zip(self.instances, self.longest, strict=True) if most >= tokens]


class Fleet:
    """Every instance that has been heard lately."""

    def __init__(
        self,
        instances: Iterable[Instance] = (),
        gateways: Iterable[tuple[InstanceId, float]] = (),
        served: Iterable[tuple[str, float]] = (),
    ) -> None:
        self._instances = {
            instance.id: replace(instance, held=dict(instance.held), pace=replace(instance.pace))
            for instance in instances
        }
        self.get = self._instances.get
        self._gateways = dict(gateways)  # when each was last heard
        self.served = dict(served)  # models that somebody serves, or did lately, and when last
        # Remembered until the next beat or loss:
        self._prefills: dict[str, _Choice] = {}
        self._pullers: dict[InstanceId, _Choice] = {}

    def __getitem__(self, instance: InstanceId) -> Instance:
        return self._instances[instance]

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def hear(self, beat: BeatHeard) -> Instance | None:
        """The instance that sent it, still to be updated. None: a later beat has overtaken this one."""
        instance = self._instances.get(beat.instance)
        if instance is None:
            instance = self._instances[beat.instance] = Instance(id=beat.instance, role=beat.role)
        if beat.number <= instance.number:
            return None
        if instance.differs(beat):
            self._forget_answers()
        return instance

    def hear_gateway(self, gateway: InstanceId, now: float) -> None:
        self._gateways[gateway] = now

    def pardon(self, now: float) -> None:
        """Nobody could be heard until now: nobody's silence counts."""
        for instance in self._instances.values():
            instance.heard_at = now
        self._gateways = dict.fromkeys(self._gateways, now)

    def remove_lost(self, now: float, limit_seconds: float) -> list[InstanceId]:
        lost = [i.id for i in self._instances.values() if now - i.heard_at > limit_seconds]
        for instance in lost:
            del self._instances[instance]
        if lost:
            self._forget_answers()
        return lost

    def remove_lost_gateways(self, now: float, limit_seconds: float) -> set[InstanceId]:
        lost = {gateway for gateway, heard_at in self._gateways.items() if now - heard_at > limit_seconds}
        for gateway in lost:
            del self._gateways[gateway]
        return lost

    def partners(self, source: InstanceId, tokens: int = 0) -> list[Instance]:
        """Decode instances that may pull KV from `source` and can hold a sequence of `tokens`, full ones included."""
        pullers = self._pullers.get(source)
        if pullers is None:
            pullers = self._pullers[source] = self._find_pullers(source)
        return pullers.instances if tokens <= pullers.shortest else pullers.holding(tokens)

    def _find_pullers(self, source: InstanceId) -> _Choice:
        prefill = self._instances.get(source)
        if prefill is None:
            return _choice([])
        alike = (prefill.model, prefill.kv_format)
        decodes = (d for d in self._instances.values() if d.role == "decode" and d.takes_work)
        pullers = (d for d in decodes if (d.model, d.kv_format) == alike and source in d.linked)
        return _choice([(d, d.capacity.max_model_tokens) for d in pullers])

    def prefills(self, model: str, tokens: int = 0) -> list[Instance]:
        """Prefill instances that can take a sequence which may grow to `tokens`, and have somewhere to hand it on."""
        prefills = self._prefills.get(model)
        if prefills is None:
            prefills = self._prefills[model] = _choice(list(self._find_prefills(model)))
        return prefills.instances if tokens <= prefills.shortest else prefills.holding(tokens)

    def _find_prefills(self, model: str) -> Iterator[tuple[Instance, int]]:
        for p in self._instances.values():
            if p.role == "prefill" and p.takes_work and p.model == model:
                pullers = self.partners(p.id)
                if pullers:
                    longest = max(decode.capacity.max_model_tokens for decode in pullers)
                    yield p, min(p.capacity.max_model_tokens, longest)

    def _forget_answers(self) -> None:
        self._prefills.clear()
        self._pullers.clear()

    def colocated(self, model: str, tokens: int = 0) -> list[Instance]:
        """Decode instances that prefill by themselves."""
        return [
            d
            for d in self._instances.values()
            if d.colocated and d.takes_work and d.model == model and d.capacity.max_model_tokens >= tokens
        ]

    def serves(self, model: str, tokens: int = 0) -> bool:
        return bool(self.prefills(model, tokens) or self.colocated(model, tokens))

    def note_served(self, now: float, limit_seconds: float) -> None:
        """What is served now; and what was until its last instance went, for so long. One that drains has not gone."""
        for instance in self._instances.values():
            model = instance.model
            if self.serves(model) or (instance.draining and model in self.served):
                self.served[model] = now
        self.served = {model: at for model, at in self.served.items() if now - at < limit_seconds}

    def awaits(self, model: str) -> bool:
        """Nobody serves it now, but somebody did lately, and may be replaced or started again."""
        return model in self.served and not self.serves(model)

    def choose_first(self, work: Work) -> Instance | None:
        """Where a queued request goes: prefill with least queued work, else a colocated instance. None: all full."""
        prefills = _others(self.prefills(work.model, work.final_tokens), work)
        if prefills:
            if len(prefills) == 1:
                return prefills[0] if prefills[0].prefill_has_room(work) else None
            roomy = [p for p in prefills if p.prefill_has_room(work)]
            return min(roomy, key=lambda p: p.prefill_rank, default=None)
        return _least_loaded(_others(self.colocated(work.model, work.final_tokens), work), work)

    def choose_decode(self, live: Live) -> Instance | None:
        """Where a computed context goes: the least loaded decode instance that can pull it. None: all full."""
        partners = _others(self.partners(live.source, live.final_tokens), live)
        if len(partners) == 1:
            return partners[0] if partners[0].decode_has_room(live) else None
        return _least_loaded(partners, live)

    def copy(self) -> tuple[tuple[Instance, ...], tuple[tuple[InstanceId, float], ...]]:
        instances = tuple(
            replace(instance, held=dict(instance.held), pace=replace(instance.pace))
            for instance in self._instances.values()
        )
        return instances, tuple(self._gateways.items())


def _choice(pairs: list[tuple[Instance, int]]) -> _Choice:
    longest = [most for _, most in pairs]
    return _Choice([instance for instance, _ in pairs], longest, min(longest, default=0))


def _others(instances: list[Instance], work: Work) -> list[Instance]:
    """Those where it has not failed, if there are any: it waits for them rather than fail again at one that is free."""
    if not work.avoid:
        return instances
    return [one for one in instances if one.id not in work.avoid] or instances


def _least_loaded(decodes: list[Instance], work: Work) -> Instance | None:
    roomy = [d for d in decodes if d.decode_has_room(work)]
    return min(roomy, key=lambda d: d.decode_rank, default=None)
