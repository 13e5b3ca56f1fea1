"""Gateways and instances that do what a test says, each on a bus connection of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from opentelemetry import trace

from shared.bus import Bus
from shared.messages.handoff import KvHandle, KvNoted, KvReady, KvReleased, KvRenewed
from shared.messages.instances import Beat, Capacity, Link, Load
from shared.messages.requests import (
    AbortRequest,
    Accepted,
    RefusalReason,
    Refused,
    RequestEnded,
    SubmitRequest,
)
from shared.messages.tokens import RequestInterrupted
from shared.messages.work import StartDecode, Started, StartPrefill
from shared.specs.ids import BlockId, InstanceId, RequestId, role_of
from shared.specs.sampling import Sampling

P = TypeVar("P", bound="Part")
MODEL = "tiny"
BEAT_SECONDS = 0.1
WAIT_SECONDS = 5.0
CAPACITY = Capacity(
    max_model_tokens=1024,
    block_tokens=16,
    blocks=512,
    max_batch=32,
    max_queue_tokens=4096,
    max_queue_requests=16,
)
Connect = Callable[[str], Awaitable[Bus]]


def work(request: str, attempt: int = 0, gateway: str = "gateway-1", prompt: int = 8) -> SubmitRequest:
    return SubmitRequest(
        request=RequestId(request),
        attempt=attempt,
        gateway=InstanceId(gateway),
        model=MODEL,
        prompt=tuple(range(prompt)),
        sampling=Sampling(max_tokens=16),
    )


class Part:
    """Somebody who beats."""

    def __init__(self, bus: Bus, name: str, **facts: object) -> None:
        self.bus, self.name = bus, InstanceId(name)
        self.facts = facts
        self.works: dict[RequestId, SubmitRequest] = {}
        self.aborted: asyncio.Queue[AbortRequest] = asyncio.Queue()
        self._number = 0
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.bus.subscribe(AbortRequest.SUBJECT, self._on_abort, AbortRequest)
        self._beating = asyncio.create_task(self._beat())

    def die(self) -> None:
        """It says nothing any more."""
        if self._beating is not None:
            self._beating.cancel()

    async def _on_abort(self, message: AbortRequest) -> None:
        self.works.pop(message.request, None)
        await self.aborted.put(message)

    async def _beat(self) -> None:
        while True:
            self._number += 1
            beat = Beat(
                instance=self.name,
                role=role_of(self.name),  # pyright: ignore[reportArgumentType]
                number=self._number,
                model=MODEL,
                capacity=CAPACITY,
                load=Load(free_blocks=512),
                requests=tuple((work.request, work.attempt) for work in self.works.values()),
                **self.facts,  # pyright: ignore[reportArgumentType]
            )
            await self.bus.publish(Beat.SUBJECT.format(role=beat.role, instance=self.name), beat)
            await asyncio.sleep(BEAT_SECONDS)


class Worker(Part):
    """A prefill or decode instance: takes what it is sent, or does not."""

    def __init__(self, bus: Bus, name: str, **facts: object) -> None:
        super().__init__(bus, name, **facts)
        self.refusal: RefusalReason | None = None
        self.silent = False
        self.started: asyncio.Queue[StartPrefill | StartDecode] = asyncio.Queue()
        self.traces: list[int] = []
        self.renewed: asyncio.Queue[KvRenewed] = asyncio.Queue()
        self.released: asyncio.Queue[KvReleased] = asyncio.Queue()

    async def start(self) -> None:
        kind = StartPrefill if role_of(self.name) == "prefill" else StartDecode
        await self.bus.subscribe(kind.SUBJECT.format(instance=self.name), self._on_start, kind)
        if kind is StartPrefill:
            await self.bus.subscribe(KvRenewed.SUBJECT.format(instance=self.name), self.renewed.put, KvRenewed)
            await self.bus.subscribe(KvReleased.SUBJECT.format(instance=self.name), self.released.put, KvReleased)
        await super().start()

    async def _on_start(self, message: StartPrefill | StartDecode) -> Started | Refused | None:
        self.traces.append(trace.get_current_span().get_span_context().trace_id)
        request, attempt = message.work.request, message.work.attempt
        if self.refusal is not None:
            return Refused(request=request, attempt=attempt, reason=self.refusal, message="as the test says")
        await self.started.put(message)
        self.works[request] = message.work
        return None if self.silent else Started(request=request, attempt=attempt)

    async def say_kv_ready(self, work: SubmitRequest) -> None:
        """As a prefill instance that has computed the context."""
        kv = KvHandle(
            source=self.name,
            blocks=(BlockId(3), BlockId(4)),
            tokens=work.context_tokens,
            lease_seconds=30.0,
            first_token=7,
        )
        await self.bus.request(KvReady.SUBJECT, KvReady(work=work, kv=kv), KvNoted, timeout_seconds=WAIT_SECONDS)


class Gateway(Part):
    def __init__(self, bus: Bus, name: str) -> None:
        super().__init__(bus, name)
        self.interrupted: asyncio.Queue[RequestInterrupted] = asyncio.Queue()

    async def start(self) -> None:
        subject = RequestInterrupted.SUBJECT.format(gateway=self.name)
        await self.bus.subscribe(subject, self.interrupted.put, RequestInterrupted)
        await super().start()

    async def submit(self, work: SubmitRequest) -> Accepted | Refused:
        return await self.bus.request(SubmitRequest.SUBJECT, work, Accepted, Refused, timeout_seconds=WAIT_SECONDS)

    async def end(self, work: SubmitRequest) -> None:
        ended = RequestEnded(
            request=work.request,
            attempt=work.attempt,
            gateway=self.name,
            outcome="stop",
            prompt_tokens=len(work.prompt),
            output_tokens=3,
            ttft_seconds=0.1,
            tpot_seconds=0.01,
        )
        await self.bus.publish(RequestEnded.SUBJECT, ended)


@dataclass
class Cast:
    """Everybody but the scheduler."""

    connect: Connect
    parts: list[Part] = field(default_factory=list)

    async def gateway(self, name: str = "gateway-1") -> Gateway:
        return await self._add(Gateway(await self.connect(name), name))

    async def prefill(self, name: str = "prefill-1") -> Worker:
        return await self._add(Worker(await self.connect(name), name))

    async def decode(self, name: str = "decode-1", peers: tuple[str, ...] = ("prefill-1",), **facts: object) -> Worker:
        links = tuple(Link(peer=InstanceId(peer), ok=True) for peer in peers)
        return await self._add(Worker(await self.connect(name), name, links=links, **facts))

    async def _add(self, part: P) -> P:
        self.parts.append(part)
        await part.start()
        return part
