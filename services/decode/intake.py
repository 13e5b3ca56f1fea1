"""StartDecode -> a running sequence: waits for room, reserves blocks, pulls the KV, lets prefill free its copy."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import structlog
from opentelemetry import context as trace_context

from services.decode.puller import KvGone, Puller
from services.decode.sequence import Arrival, Sequence
from services.decode.worker import DecodeWorker
from shared.kv.layout import blocks_for
from shared.kv.ledger import Ledger, Owner, State
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.work import StartDecode, Started
from shared.policy.decode import admissible
from shared.policy.soundness import unsound, unsound_kv
from shared.specs.ids import InstanceId, RequestId
from shared.telemetry import traces
from shared.telemetry.metrics import DecodeMetrics
from shared.transport.interface import TransportError
from shared.worker.teller import Teller

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeLimits:
    queue_requests: int
    max_batch: int  # sequences that may own blocks here at once
    block_tokens: int
    max_model_tokens: int
    vocabulary: int
    colocated: bool


class Intake:
    """Owns every request from StartDecode until it joins the worker's members, and answers for those too."""

    def __init__(
        self,
        ledger: Ledger,
        worker: DecodeWorker,
        puller: Puller,
        teller: Teller,
        metrics: DecodeMetrics,
        limits: IntakeLimits,
    ) -> None:
        self._ledger, self._worker, self._puller, self._teller = ledger, worker, puller, teller
        self._metrics, self._limits = metrics, limits
        metrics.watch(ledger, running=lambda: len(worker.members), waiting=lambda: len(self.queued))
        self._fills: set[asyncio.Task[None]] = set()  # at most max_batch: each owns blocks
        self._queue: deque[Arrival] = deque()
        self._filling: list[Arrival] = []
        self._changed = asyncio.Event()
        self.draining = False

    # -- what the bus asks --------------------------------------------------------------------------------------------

    async def start(self, message: StartDecode) -> Started | Refused:
        work = message.work
        known = max((w.attempt for w in self.works() if w.request == work.request), default=None)
        if known == work.attempt:
            return Started(request=work.request, attempt=work.attempt)
        if known is not None and known > work.attempt:
            return Refused.of(work, "invalid", f"attempt {known} of this request is here already")
        refusal = self._refusal(message)
        if refusal is not None:
            return refusal
        replaced = self._drop(work.request, known) if known is not None else []
        self._teller.begin(work)
        if message.kv is not None:
            self._teller.note(work.request, message.kv.first_token, message.kv.first_logprobs)
        self._queue.append(Arrival(work, message.kv, trace_context.get_current()))
        self._changed.set()
        await self._release(replaced)
        return Started(request=work.request, attempt=work.attempt)

    async def abort(self, message: AbortRequest) -> None:
        dropped = self._drop(message.request, message.attempt)
        if dropped:
            self._teller.end(message.request, "aborted")
            await self._release(dropped)
            await self._teller.flush()

    async def abort_requests_of(self, gateway: InstanceId) -> None:
        """Its clients are gone with it."""
        for work in self.works():
            if work.gateway == gateway:
                dropped = self._drop(work.request, work.attempt)
                self._teller.forget(work.request, work.attempt)
                await self._release(dropped)

    # -- what others ask ----------------------------------------------------------------------------------------------

    @property
    def queued(self) -> list[Arrival]:
        return [arrival for arrival in (*self._queue, *self._filling) if not arrival.dropped]

    def works(self) -> list[SubmitRequest]:
        """Every request this instance answers for."""
        members = [member.arrival for member in self._worker.members]
        return [arrival.work for arrival in (*self._queue, *self._filling, *members) if not arrival.dropped]

    async def give_back_all(self, reason: str) -> None:
        """Hand every request back to its gateway: this instance is going away."""
        for work in self.works():
            await self._release(self._drop(work.request, work.attempt))
            await self._teller.interrupt(work, reason)

    async def give_back_from(self, source: InstanceId) -> None:
        """Hand back what waits for KV that is lost with `source`. A pull that runs ends by itself."""
        for arrival in list(self._queue):
            if arrival.kv is not None and arrival.kv.source == source:
                self._drop(arrival.work.request, arrival.work.attempt)
                await self._teller.interrupt(arrival.work, f"its KV was lost with {source}")

    async def close(self) -> None:
        """End every transfer and wait until nothing writes into the pool any more."""
        for fill in self._fills:
            fill.cancel()
        await asyncio.gather(*self._fills, return_exceptions=True)

    # -- the loops ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Admit from the head of the queue whenever there is room."""
        while True:
            while self._queue and self._has_room(self._queue[0]):
                self._admit(self._queue.popleft())
            self._changed.clear()
            await self._changed.wait()

    async def watch_room(self) -> None:
        while True:
            await self._worker.room_changed()
            self._changed.set()

    def _has_room(self, arrival: Arrival) -> bool:
        limits = self._limits
        members = len(self._worker.members) + len(self._filling)
        return admissible(
            arrival.work.context_tokens, limits.block_tokens, self._ledger.free, members, limits.max_batch
        )

    def _admit(self, arrival: Arrival) -> None:
        count = blocks_for(arrival.work.context_tokens + 1, self._limits.block_tokens)
        self._ledger.take(arrival.owner, count, State.RESERVED)
        self._metrics.queue_seconds.observe((time.time_ns() - arrival.arrived_ns) / 1e9)
        arrival.record_span(traces.DECODE_QUEUE, arrival.arrived_ns, {})
        if arrival.kv is None:
            self._join(arrival)
            return
        self._filling.append(arrival)
        fill = asyncio.create_task(self._fill(arrival))
        self._fills.add(fill)
        fill.add_done_callback(self._fills.discard)

    async def _fill(self, arrival: Arrival) -> None:
        """Pull the KV; whatever goes wrong, the blocks are free or running afterwards and the gateway knows."""
        owner, kv = arrival.owner, arrival.kv
        assert kv is not None
        holding = self._ledger.get(owner)
        assert holding is not None
        self._ledger.move(owner, State.FILLING)
        failure = ""
        try:
            await self._puller.pull(arrival, holding.blocks)
        except (TransportError, KvGone) as error:
            failure = str(error)
        except Exception as error:  # whatever it was: a request that nobody works on must not look taken
            log.exception("kv_pull_failed", request_id=owner.request)
            failure = type(error).__name__
        finally:
            self._filling.remove(arrival)
            self._changed.set()
        if failure or arrival.dropped:
            if self._ledger.move(owner, State.RESERVED):
                self._ledger.release(owner)
            self._worker.wake()  # a member may wait for these blocks
            if not arrival.dropped:
                await self._teller.interrupt(arrival.work, f"KV not moved: {failure}")
        else:
            self._join(arrival)

    def _join(self, arrival: Arrival) -> None:
        self._ledger.move(arrival.owner, State.RUNNING)
        holding = self._ledger.get(arrival.owner)
        assert holding is not None
        self._worker.join(Sequence.of(arrival, holding))

    def _drop(self, request: RequestId, attempt: int) -> list[Arrival]:
        """Let go of attempts up to this one. Blocks in a transfer or a step are freed when that has ended.

        Nothing is awaited here: the next attempt may come in between.
        """
        members = [member.arrival for member in self._worker.members]
        dropped = [
            arrival
            for arrival in (*self._queue, *self._filling, *members)
            if arrival.work.request == request and arrival.work.attempt <= attempt and not arrival.dropped
        ]
        for arrival in dropped:
            arrival.dropped = True
            if arrival in self._queue:
                self._queue.remove(arrival)
        self._worker.wake()
        self._changed.set()
        return dropped

    async def _release(self, dropped: list[Arrival]) -> None:
        """KV that has been asked for is released by its pull, when nothing touches it any more."""
        for arrival in dropped:
            if arrival.owner not in self._ledger:
                await self._puller.release(arrival)

    def _refusal(self, message: StartDecode) -> Refused | None:
        work, limits = message.work, self._limits
        if self.draining:
            return Refused.of(work, "draining", "this instance is going away")
        if message.kv is None and not limits.colocated:
            return Refused.of(work, "invalid", "this instance does not prefill")
        if work.final_tokens > limits.max_model_tokens:
            what = f"{work.final_tokens} tokens at most, {limits.max_model_tokens} fit here"
            return Refused.of(work, "too_long", what)
        if Owner(work.request, work.attempt) in self._ledger:
            return Refused.of(work, "invalid", "it was aborted here, and a transfer or a step of it has not ended yet")
        if len(self._queue) >= limits.queue_requests:
            return Refused.of(work, "queue_full", f"{len(self._queue)} requests wait here")
        refusal = unsound(work, limits.vocabulary)
        if refusal is None and message.kv is not None:
            return unsound_kv(message.kv, work, limits.vocabulary, limits.block_tokens)
        return refusal
