"""Events in few words, and a dispatcher with a clock, for the tests of the scheduler."""

from collections.abc import Iterable
from typing import Any, TypeVar

from services.scheduler.dispatcher import Dispatcher
from services.scheduler.events import (
    Aborted,
    BeatHeard,
    Effect,
    Ended,
    Event,
    KvComputed,
    KvLost,
    StartAnswer,
    StartAnswered,
    Submitted,
    Ticked,
)
from services.scheduler.limits import Limits
from shared.messages.instances import Capacity, Load
from shared.specs.ids import InstanceId, RequestId, role_of

E = TypeVar("E")
MODEL = "tiny"
GATEWAY = "gateway-1"
P1, P2 = InstanceId("prefill-1"), InstanceId("prefill-2")
D1, D2 = InstanceId("decode-1"), InstanceId("decode-2")
CAPACITY = Capacity(
    max_model_tokens=4096,
    block_tokens=16,
    blocks=1024,
    max_batch=64,
    max_queue_tokens=1000,
    max_queue_requests=8,
)


def submitted(
    now: float,
    request: str,
    attempt: int = 0,
    *,
    tokens: int = 100,
    final: int = 200,
    resumed: bool = False,
    model: str = MODEL,
    gateway: str = GATEWAY,
    avoid: Iterable[str] = (),
) -> Submitted:
    return Submitted(
        now=now,
        request=RequestId(request),
        attempt=attempt,
        gateway=InstanceId(gateway),
        model=model,
        context_tokens=tokens,
        final_tokens=final,
        resumed=resumed,
        avoid=tuple(InstanceId(one) for one in avoid),
    )


def beat(
    now: float,
    instance: str,
    number: int,
    *,
    ready: bool = True,
    draining: bool = False,
    colocated: bool = False,
    linked: Iterable[str] = (),
    requests: Iterable[tuple[str, int]] = (),
    capacity: Capacity = CAPACITY,
    load: Load | None = None,
    model: str = MODEL,
    kv_format: str = "bf16",
) -> BeatHeard:
    return BeatHeard(
        now=now,
        instance=InstanceId(instance),
        role=role_of(InstanceId(instance)),  # pyright: ignore[reportArgumentType]
        number=number,
        model=model,
        ready=ready,
        draining=draining,
        colocated=colocated,
        kv_format=kv_format,
        capacity=capacity,
        load=load or Load(free_blocks=capacity.blocks),
        linked=tuple(InstanceId(peer) for peer in linked),
        requests=tuple((RequestId(request), attempt) for request, attempt in requests),
    )


class World:
    """A dispatcher, the time, and short words for what happens to it."""

    def __init__(self, limits: Limits | None = None, *, settled: bool = True) -> None:
        self.dispatcher = Dispatcher(limits or Limits())
        self.now = 100.0
        self._numbers: dict[str, int] = {}
        self.tick()
        if settled:
            for _ in range(6):
                self.tick(0.25)

    def feed(self, event: Event) -> list[Effect]:
        return self.dispatcher.step(event)

    def tick(self, seconds: float = 0.0) -> list[Effect]:
        self.now += seconds
        return self.feed(Ticked(now=self.now))

    def submit(self, request: str, attempt: int = 0, **facts: Any) -> list[Effect]:
        return self.feed(submitted(self.now, request, attempt, **facts))

    def beat(self, instance: str, **facts: Any) -> list[Effect]:
        number = self._numbers[instance] = self._numbers.get(instance, 0) + 1
        return self.feed(beat(self.now, instance, number, **facts))

    def pair(self, prefills: Iterable[str] = ("prefill-1",), decodes: Iterable[str] = ("decode-1",)) -> None:
        """All of them alive, each decode linked to each prefill."""
        for prefill in prefills:
            self.beat(prefill)
        for decode in decodes:
            self.beat(decode, linked=prefills)

    def answer(self, instance: str, request: str, answer: StartAnswer, attempt: int = 0) -> list[Effect]:
        return self.feed(
            StartAnswered(
                now=self.now,
                instance=InstanceId(instance),
                request=RequestId(request),
                attempt=attempt,
                answer=answer,
            )
        )

    def kv_computed(
        self,
        request: str,
        source: str = "prefill-1",
        attempt: int = 0,
        *,
        tokens: int = 100,
        final: int = 200,
        gateway: str = GATEWAY,
        avoid: Iterable[str] = (),
    ) -> list[Effect]:
        return self.feed(
            KvComputed(
                now=self.now,
                request=RequestId(request),
                attempt=attempt,
                gateway=InstanceId(gateway),
                model=MODEL,
                context_tokens=tokens,
                final_tokens=final,
                source=InstanceId(source),
                avoid=tuple(InstanceId(one) for one in avoid),
            )
        )

    def kv_lost(self, request: str, source: str = "prefill-1", attempt: int = 0) -> list[Effect]:
        return self.feed(KvLost(now=self.now, request=RequestId(request), attempt=attempt, source=InstanceId(source)))

    def end(self, request: str, attempt: int = 0) -> list[Effect]:
        return self.feed(Ended(now=self.now, request=RequestId(request), attempt=attempt))

    def abort(self, request: str, attempt: int = 0) -> list[Effect]:
        return self.feed(Aborted(now=self.now, request=RequestId(request), attempt=attempt))

    def prefilling(self, request: str, source: str = "prefill-1", **facts: Any) -> None:
        """Submit a request and let its prefill instance take it."""
        self.submit(request, **facts)
        self.answer(source, request, "started")

    def decoding(self, request: str, source: str = "prefill-1", decode: str = "decode-1") -> None:
        """Bring a request to where a decode instance runs it."""
        self.prefilling(request, source)
        self.kv_computed(request, source)
        self.answer(decode, request, "started")

    def stage_of(self, request: str) -> str | None:
        live = self.dispatcher.board.live.get(RequestId(request))
        return live.stage if live is not None else None

    @property
    def is_empty(self) -> bool:
        """Nothing is left of any request, wherever it was."""
        board = self.dispatcher.board
        tables = (board.live, board.queue.requests, board.queue.tokens, board.kv.requests, board.kv.tokens)
        held = [i for i in board.fleet if i.held or i.held_tokens]
        return not any(tables) and not held and not board.queue.names() and not board.kv.names()


def of(kind: type[E], effects: Iterable[object]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]
