"""Virtual time, and the way of every request through it: the events go to the same Dispatcher as in the live system."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import (
    BeatHeard,
    Ended,
    Event,
    KvComputed,
    Refuse,
    SendDecode,
    SendPrefill,
    StartAnswered,
    Submitted,
    Ticked,
)
from services.scheduler.limits import Limits
from services.scheduler.simulator.records import NEVER, Records
from services.scheduler.simulator.targets import Targets
from services.scheduler.simulator.workload import Trace
from shared.messages.instances import Capacity, Load
from shared.specs.ids import InstanceId, RequestId, Role

GATEWAY = InstanceId("gateway-simulated")
BEAT_SECONDS = 1.0


class Simulated(Protocol):
    """An instance, as the scheduler sees it by its beats."""

    id: InstanceId
    capacity: Capacity

    def start(self, request: int, source: Any, now: float) -> None: ...
    def load(self) -> Load: ...
    def requests(self) -> list[int]: ...


class World:
    """The clock, the dispatcher, and what is known of each request. Requests are numbers here."""

    def __init__(
        self, trace: Trace, model: str, hop_seconds: float, kv_bytes_per_second: float, kv_token_bytes: int
    ) -> None:
        self.records = Records(trace)
        self.context = list(trace.inputs)  # tokens to have KV for before the next token can be had
        self.left = list(trace.outputs)  # tokens that are not out yet
        self._trace, self._model, self._hop = trace, model, hop_seconds
        self._seconds_per_token = kv_token_bytes / kv_bytes_per_second
        self._names = [RequestId(str(number)) for number in range(len(trace))]
        self._attempts: dict[int, int] = {}  # of those that were preempted
        self._heap: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._order = count()
        self._dispatcher = Dispatcher(Limits(settle_seconds=0.0))
        self._instances: dict[InstanceId, tuple[Simulated, Role]] = {}
        self._linked: tuple[InstanceId, ...] = ()
        self._beats = 0
        self._beating = False
        self._live = 0
        self._targets: Targets | None = None
        self.samples: list[tuple[float, int, list[Load]]] = []  # once a second: (time, queued here, loads)

    def add(self, instance: Simulated, role: Role) -> None:
        self._instances[instance.id] = (instance, role)
        if role == "prefill":
            self._linked = (*self._linked, instance.id)

    def at(self, time: float, call: Callable[[float, Any], None], what: object) -> None:
        heappush(self._heap, (time, next(self._order), call, what))

    def transfer_seconds(self, tokens: int) -> float:
        return tokens * self._seconds_per_token

    def run(self, targets: Targets | None = None) -> None:
        """Until every request has ended, or `targets` can no longer be met."""
        self._targets = targets
        heap, arrivals, requests = self._heap, self._trace.arrivals, len(self._trace)
        self._decide(Ticked(now=0.0))
        arrived = 0
        while arrived < requests or heap:
            if arrived < requests and (not heap or arrivals[arrived] + self._hop <= heap[0][0]):
                self._submit(arrivals[arrived] + self._hop, arrived)
                arrived += 1
            else:
                now, _, call, what = heappop(heap)
                call(now, what)
            if targets is not None and targets.lost:
                return

    # -- what instances report ----------------------------------------------------------------------------------------

    def first_token(self, request: int, source: Simulated, now: float) -> bool:
        """A prefill instance has computed the context. False: this token was the last."""
        if not self._note_first(request, now):
            return False
        self._soon(now, self._kv_computed, (request, source.id))
        return True

    def first_token_here(self, request: int, now: float) -> bool:
        """The same for an instance that decodes it as well."""
        return self._note_first(request, now)

    def last_token(self, request: int, now: float) -> None:
        self.records.last_at[request] = now + self._hop
        self._live -= 1
        if self._targets is not None:
            self._targets.ended(request, self.records)
        self._soon(now, self._ended, request)

    def preempted(self, request: int, now: float) -> None:
        """Its gateway submits it again with what it has."""
        self.records.preemptions += 1
        self.context[request] = self._trace.inputs[request] + self._trace.outputs[request] - self.left[request]
        self._attempts[request] = self._attempts.get(request, 0) + 1
        self.at(now + 2 * self._hop, self._submit_again, request)

    def _note_first(self, request: int, now: float) -> bool:
        first_at = self.records.first_at
        if first_at[request] == NEVER:
            first_at[request] = now + self._hop
        self.left[request] -= 1
        if not self.left[request]:
            self.last_token(request, now)
        return self.left[request] > 0

    # -- the dispatcher -----------------------------------------------------------------------------------------------

    def _decide(self, event: Event) -> None:
        for effect in self._dispatcher.step(event):
            match effect:
                case SendPrefill():
                    self._soon(event.now, self._start, (effect.instance, int(effect.request), None))
                case SendDecode():
                    self._soon(event.now, self._start, (effect.instance, int(effect.request), effect.source))
                case Refuse():
                    self.records.refused += 1
                    self._live -= 1
                    if self._targets is not None:
                        self._targets.missed += 1
                case _:
                    pass

    def _soon(self, now: float, call: Callable[[float, Any], None], what: object) -> None:
        if self._hop:
            self.at(now + self._hop, call, what)
        else:
            call(now, what)

    def _submit(self, now: float, request: int) -> None:
        self._live += 1
        if not self._beating:
            self._beating = True
            self._beat(now, None)
        self._decide(self._submission(now, request, 0))

    def _submit_again(self, now: float, request: int) -> None:
        self._decide(self._submission(now, request, self._attempts[request]))

    def _submission(self, now: float, request: int, attempt: int) -> Submitted:
        return Submitted(
            now=now,
            request=self._names[request],
            attempt=attempt,
            gateway=GATEWAY,
            model=self._model,
            context_tokens=self.context[request],
            final_tokens=self._trace.inputs[request] + self._trace.outputs[request],
            resumed=attempt > 0,
        )

    def _start(self, now: float, what: tuple[InstanceId, int, InstanceId | None]) -> None:
        name, request, source = what
        attempt = self._attempts.get(request, 0)
        self._dispatcher.step(
            StartAnswered(now=now, instance=name, request=self._names[request], attempt=attempt, answer="started")
        )
        instance, _ = self._instances[name]
        instance.start(request, self._instances[source][0] if source is not None else None, now)

    def _kv_computed(self, now: float, what: tuple[int, InstanceId]) -> None:
        request, source = what
        self._decide(
            KvComputed(
                now=now,
                request=self._names[request],
                attempt=self._attempts.get(request, 0),
                gateway=GATEWAY,
                model=self._model,
                context_tokens=self.context[request],
                final_tokens=self._trace.inputs[request] + self._trace.outputs[request],
                source=source,
            )
        )

    def _ended(self, now: float, request: int) -> None:
        self._decide(Ended(now=now, request=self._names[request], attempt=self._attempts.get(request, 0)))

    def _beat(self, now: float, _: object) -> None:
        """Every instance tells its load, as long as there is any."""
        self._beats += 1
        colocated = not self._linked
        loads = []
        for name, (instance, role) in self._instances.items():
            load = instance.load()
            loads.append(load)
            attempts = self._attempts
            listed = tuple((self._names[request], attempts.get(request, 0)) for request in instance.requests())
            self._decide(
                BeatHeard(
                    now=now,
                    instance=name,
                    role=role,
                    number=self._beats,
                    model=self._model,
                    colocated=colocated,
                    capacity=instance.capacity,
                    load=load,
                    linked=self._linked if role == "decode" else (),
                    requests=listed,
                )
            )
        self.samples.append((now, self._dispatcher.board.queue.requests, loads))
        if self._live:
            self.at(now + BEAT_SECONDS, self._beat, None)
        else:
            self._beating = False
