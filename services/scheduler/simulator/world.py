"""Virtual time, and the way of every request through it: the events go to the same Dispatcher as in the live system."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, repeat
from operator import add
from typing import Any, Protocol

import msgspec

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import (
    BeatHeard,
    Effect,
    Ended,
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
_Call = Callable[[float, Any], None]
_Due = tuple[float, int, _Call, Any]


class Simulated(Protocol):
    """An instance, as the scheduler sees it by its beats."""

    id: InstanceId
    capacity: Capacity

    @property
    def present(self) -> dict[int, tuple[RequestId, int]]:
        """With attempts, as its beats list them."""
        ...

    def start(self, request: int, source: Any, now: float) -> None: ...
    def load(self, now: float) -> Load: ...
    def seen(self, now: float) -> "Seen": ...


class Seen(msgspec.Struct, frozen=True, gc=False):
    """How full an instance is."""

    queued_requests: int
    running: int
    free_blocks: int


class World:
    """The clock, the dispatcher, and what is known of each request. Requests are numbers here."""

    def __init__(
        self,
        trace: Trace,
        model: str,
        hop_seconds: float,
        kv_bytes_per_second: float,
        kv_token_bytes: int,
        transfer_setup_seconds: float = 0.0,
    ) -> None:
        self.records = Records(trace)
        self.context = list(trace.inputs)  # tokens to have KV for before the next token can be had
        self.left = list(trace.outputs)  # tokens that are not out yet
        self._final = list(map(add, trace.inputs, trace.outputs))
        names = map(RequestId, map(str, range(len(trace))))
        self.pairs = list(zip(names, repeat(0)))  # (name, attempt)
        self._trace, self._model, self._hop = trace, model, hop_seconds
        self._seconds_per_token = kv_token_bytes / kv_bytes_per_second
        self._transfer_setup = transfer_setup_seconds
        self._heap: list[_Due] = []
        self._numbers = count()
        self._dispatcher = Dispatcher(Limits(settle_seconds=0.0, queue_seconds=0.0))
        self._send = self._after_a_hop(self._start)
        self.kv_computed = self._after_a_hop(self._tell_computed)  # (now, (request, its source))
        self._ended = self._after_a_hop(self._tell_ended)
        self._instances: dict[InstanceId, Simulated] = {}
        self._roles: dict[InstanceId, Role] = {}
        self._linked: tuple[InstanceId, ...] = ()
        self._decodes: list[Simulated] = []
        dues = [arrival + hop_seconds for arrival in trace.arrivals]  # each before all else of that instant
        self._coming: Iterator[_Due] = zip(dues, repeat(-1), repeat(self._arrived), count(), strict=False)
        self._arrivals = 0
        self._beats = 0
        self._beating = False
        self._live = 0
        self._targets: Targets | None = None
        self.samples: list[tuple[float, int, list[Seen]]] = []  # once a second: (time, queue here, instances)

    def add(self, instance: Simulated, role: Role) -> None:
        self._instances[instance.id] = instance
        self._roles[instance.id] = role
        if role == "prefill":
            self._linked = (*self._linked, instance.id)
        else:
            self._decodes.append(instance)

    def at(self, time: float, call: _Call, what: object) -> None:
        """Among equals the one that was asked for first comes first."""
        heappush(self._heap, (time, next(self._numbers), call, what))

    def _after_a_hop(self, call: _Call) -> _Call:
        """The same, when the control plane has carried it."""
        hop, at = self._hop, self.at
        return (lambda now, what: at(now + hop, call, what)) if hop else call

    def transfer_seconds(self, tokens: int) -> float:
        return self._transfer_setup + tokens * self._seconds_per_token

    def run(self, targets: Targets | None = None) -> None:
        """Until every request has ended, or it is clear whether `targets` are met."""
        self._targets = targets
        self._dispatcher.step(Ticked(0.0))
        heap = self._heap
        heap.append(next(self._coming))
        while heap:
            now, _, call, what = heappop(heap)
            call(now, what)
            if targets is not None and targets.decided:
                return

    # -- what instances report ----------------------------------------------------------------------------------------

    def first_token(self, request: int, now: float) -> bool:
        """Its context is computed. False: this token was the last."""
        first_at = self.records.first_at
        if first_at[request] == NEVER:
            first_at[request] = now + self._hop
            if self._targets is not None:
                self._targets.first_token(request, self.records)
        self.left[request] = left = self.left[request] - 1
        return left > 0

    def last_token(self, request: int, now: float) -> None:
        self.records.last_at[request] = now + self._hop
        self.left[request] = 0
        self._live -= 1
        if self._targets is not None:
            self._targets.ended(request, self.records)
        self._ended(now, request)

    def preempted(self, request: int, now: float) -> None:
        """Its gateway submits it again with what it has."""
        self.records.preemptions += 1
        self.context[request] = self._final[request] - self.left[request]
        name, attempt = self.pairs[request]
        self.pairs[request] = (name, attempt + 1)
        self.at(now + 2 * self._hop, self._submit, request)

    # -- the dispatcher -----------------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect], now: float) -> None:
        send = self._send
        for effect in effects:
            kind = type(effect)
            if kind is SendPrefill or kind is SendDecode:
                send(now, effect)
            elif kind is Refuse:
                self.records.refused += 1
                self._live -= 1
                if self._targets is not None:
                    self._targets.miss()

    def _arrived(self, now: float, request: int) -> None:
        following = next(self._coming, None)
        if following is not None:
            heappush(self._heap, following)
        self._live += 1
        self._arrivals += 1
        if not self._beating:
            self._beating = True
            self._beat(now, None)
        self._submit(now, request)

    def _submit(self, now: float, request: int) -> None:
        name, attempt = self.pairs[request]
        context, final = self.context[request], self._final[request]
        submitted = Submitted(now, name, attempt, GATEWAY, self._model, context, final, attempt > 0)
        self._carry_out(self._dispatcher.step(submitted), now)

    def _start(self, now: float, send: SendPrefill | SendDecode) -> None:
        if effects := self._dispatcher.step(StartAnswered(now, send.instance, send.request, send.attempt, "started")):
            self._carry_out(effects, now)
        source = self._instances[send.source] if type(send) is SendDecode and send.source is not None else None
        self._instances[send.instance].start(int(send.request), source, now)

    def _tell_computed(self, now: float, what: tuple[int, InstanceId]) -> None:
        request, source = what
        name, attempt = self.pairs[request]
        context, final = self.context[request], self._final[request]
        self._carry_out(
            self._dispatcher.step(KvComputed(now, name, attempt, GATEWAY, self._model, context, final, source)), now
        )

    def _tell_ended(self, now: float, request: int) -> None:
        name, attempt = self.pairs[request]
        self._carry_out(self._dispatcher.step(Ended(now, name, attempt)), now)

    def _beat(self, now: float, _: object) -> None:
        """Every instance tells its load, as long as there is any; but for those of which it would change nothing."""
        if self._targets is None:
            seen = [instance.seen(now) for instance in self._instances.values()]
            self.samples.append((now, self._dispatcher.board.queue.requests, seen))
        for instance in self._to_be_heard(now):
            self._carry_out(self._dispatcher.step(self._beat_of(instance, now)), now)
        if self._live:
            self.at(now + BEAT_SECONDS, self._beat, None)
        else:
            self._beating = False

    def _to_be_heard(self, now: float) -> Sequence[Simulated]:
        """Whose beats can matter to a decision before the next ones.

        What a prefill instance has queued this dispatcher has sent it, and knows. A single decode instance has room,
        whatever its load, while fewer requests than it lets wait have not ended.
        """
        self._beats += 1
        if self._beats == 1:
            return tuple(self._instances.values())
        if len(self._decodes) == 1:
            coming = bisect_right(self._trace.arrivals, now + BEAT_SECONDS, self._arrivals) - self._arrivals
            if self._live + coming < self._decodes[0].capacity.max_queue_requests:
                return ()
        return self._decodes

    def _beat_of(self, instance: Simulated, now: float) -> BeatHeard:
        role = self._roles[instance.id]
        return BeatHeard(
            now=now,
            instance=instance.id,
            role=role,
            number=self._beats,
            model=self._model,
            colocated=not self._linked,
            capacity=instance.capacity,
            load=instance.load(now),
            linked=self._linked if role == "decode" else (),
            requests=tuple(instance.present.values()),
        )
