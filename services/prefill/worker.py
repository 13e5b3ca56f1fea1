"""Prompt -> first token and KV: takes work into a bounded queue, computes it in batches, hands the KV on."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import structlog
from opentelemetry import context as trace_context
from opentelemetry.context import Context

from services.prefill.handoff import Handoff
from shared.engine.pieces import Draw, Drawn, Piece
from shared.engine.thread import EngineThread, StepHung
from shared.kv.layout import blocks_for
from shared.kv.ledger import Ledger, Owner, State
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.work import Started, StartPrefill
from shared.policy.finish import finish_of
from shared.policy.prefill import next_prefill_batch
from shared.policy.soundness import unsound
from shared.policy.step_failures import StepFailures
from shared.specs.ids import InstanceId, RequestId
from shared.telemetry import traces
from shared.telemetry.metrics import PrefillMetrics
from shared.worker.breakdown import Breakdown
from shared.worker.teller import Teller

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLimits:
    batch_tokens: int  # L_m
    queue_tokens: int  # context tokens that may wait here
    queue_requests: int
    block_tokens: int
    max_model_tokens: int
    vocabulary: int


@dataclass(slots=True)
class Job:
    """One prompt on its way through this instance."""

    work: SubmitRequest
    context: tuple[int, ...]  # prompt and what earlier attempts generated
    blocks: int
    trace: Context
    arrived_ns: int = field(default_factory=time.time_ns)

    @property
    def owner(self) -> Owner:
        return Owner(self.work.request, self.work.attempt)


class PrefillWorker:
    """Owns every request from StartPrefill until its KV is with the handoff."""

    def __init__(
        self,
        engine: EngineThread,
        ledger: Ledger,
        teller: Teller,
        handoff: Handoff,
        metrics: PrefillMetrics,
        limits: PrefillLimits,
        breakdown: Breakdown,
    ) -> None:
        self._engine, self._ledger, self._teller, self._handoff = engine, ledger, teller, handoff
        self._metrics, self._limits, self._breakdown = metrics, limits, breakdown
        self._waiting: deque[Job] = deque()
        self._computing: list[Job] = []
        self._wake = asyncio.Event()
        self.draining = False
        self._failures = StepFailures()
        metrics.watch(ledger, running=lambda: len(self._computing), waiting=lambda: len(self._waiting))

    # -- what the bus asks --------------------------------------------------------------------------------------------

    def start(self, message: StartPrefill) -> Started | Refused:
        work = message.work
        known = self._attempt_of(work.request)
        if known == work.attempt:
            return Started(request=work.request, attempt=work.attempt)
        if known is not None and known > work.attempt:
            return Refused.of(work, "invalid", f"attempt {known} of this request is here already")
        refusal = self._refusal(work)
        if refusal is not None:
            return refusal
        if known is not None:
            self._end(work.request, work.attempt)
        context = work.prompt + work.generated
        blocks = blocks_for(len(context), self._limits.block_tokens)
        self._teller.begin(work)
        self._waiting.append(Job(work, context, blocks, trace_context.get_current()))
        self._wake.set()
        return Started(request=work.request, attempt=work.attempt)

    async def abort(self, message: AbortRequest) -> None:
        """What waits stops at once; what is computed or moved is dropped when the step or the transfer has ended."""
        self._end(message.request, message.attempt)
        await self._teller.flush()

    async def abort_requests_of(self, gateway: InstanceId) -> None:
        """Its clients are gone with it."""
        for work in self.works():
            if work.gateway == gateway:
                self._drop(Owner(work.request, work.attempt))
                self._teller.forget(work.request, work.attempt)

    def blocks_freed(self) -> None:
        self._wake.set()

    # -- what the beat says -------------------------------------------------------------------------------------------

    @property
    def queued_tokens(self) -> int:
        return sum(len(job.context) for job in (*self._waiting, *self._computing))

    @property
    def queued_requests(self) -> int:
        return len(self._waiting) + len(self._computing)

    def works(self) -> list[SubmitRequest]:
        """Every request this instance answers for."""
        return [job.work for job in (*self._waiting, *self._computing)] + self._handoff.works()

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while not self._breakdown.reason:
            batch = self._next_batch()
            if batch:
                await self._compute(batch)
            else:
                await self._wake.wait()
                self._wake.clear()

    async def give_back_all(self, reason: str) -> None:
        """Hand every request back to its gateway: this instance is going away."""
        for work in self.works():
            self._drop(Owner(work.request, work.attempt))
            await self._teller.interrupt(work, reason)

    def _next_batch(self) -> list[Job]:
        waiting = ((len(job.context), job.blocks) for job in self._waiting)
        count = next_prefill_batch(waiting, self._limits.batch_tokens, self._ledger.free)
        return [self._waiting.popleft() for _ in range(count)]

    async def _compute(self, batch: list[Job]) -> None:
        pieces = [self._piece(job) for job in batch]
        self._computing = batch
        started_ns = time.time_ns()
        try:
            drawn = await self._engine.step(pieces)
        except StepHung as error:
            self._breakdown.declare(str(error))
            return  # what is being computed goes back with everything else
        except Exception as error:  # whatever the engine met: these requests go back, the instance lives on
            self._computing = []
            self._failures.failed([job.work.request for job in batch])
            self._breakdown.note_failures(self._failures.in_a_row, error)
            self._metrics.steps_failed.inc()
            log.exception("prefill_step_failed", requests=len(batch))
            await self._give_back_failed(batch, f"prefill failed: {type(error).__name__}")
            return
        self._computing = []
        self._failures.succeeded()
        self._metrics.step_ended(self._engine.step_seconds, sum(len(job.context) for job in batch))
        for job, result in zip(batch, drawn, strict=True):
            assert result is not None
            self._record(job, result, started_ns, len(batch))
        await self._teller.flush()

    def _piece(self, job: Job) -> Piece:
        blocks = self._ledger.take(job.owner, job.blocks, State.COMPUTING)
        draw = Draw(job.work.sampling, job.work.prompt, job.work.generated)
        return Piece(tokens=job.context, start=0, blocks=blocks, draw=draw)

    def _record(self, job: Job, drawn: Drawn, started_ns: int, batch_requests: int) -> None:
        """The first token is out; the KV is held for the decode side, or free if the answer ends here."""
        if not self._ledger.move(job.owner, State.HELD):
            return  # aborted while it was computed
        work, now_ns = job.work, time.time_ns()
        self._metrics.queue_seconds.observe((started_ns - job.arrived_ns) / 1e9)
        self._metrics.prefill_seconds.observe((now_ns - started_ns) / 1e9)
        request = {traces.REQUEST_ID: work.request, traces.ATTEMPT: work.attempt}
        traces.record_span(traces.PREFILL_QUEUE, job.trace, job.arrived_ns, started_ns, request)
        attributes = request | {traces.CONTEXT_TOKENS: len(job.context), traces.BATCH_REQUESTS: batch_requests}
        traces.record_span(traces.PREFILL_FORWARD, job.trace, started_ns, now_ns, attributes)
        finish = finish_of(work.sampling, drawn.token, len(work.generated) + 1)
        self._teller.tell(work.request, drawn.token, drawn.logprobs, finish)
        if finish is None:
            self._handoff.offer(work, drawn, job.trace)
        else:
            self._ledger.release(job.owner)

    def _end(self, request: RequestId, attempt: int) -> None:
        """Attempts up to this one are aborted, and the gateway is told with the next flush."""
        for work in self.works():
            if work.request == request and work.attempt <= attempt:
                self._drop(Owner(work.request, work.attempt))
                self._teller.end(work.request, "aborted")

    def _drop(self, owner: Owner) -> None:
        self._waiting = deque(job for job in self._waiting if job.owner != owner)
        self._ledger.release(owner)  # dooms it if it is being computed
        self._handoff.end(owner)
        self._wake.set()

    async def _give_back_failed(self, batch: list[Job], reason: str) -> None:
        for job in batch:
            if self._ledger.move(job.owner, State.HELD):
                self._ledger.release(job.owner)
                await self._teller.interrupt(job.work, reason, failed=True)

    def _refusal(self, work: SubmitRequest) -> Refused | None:
        limits = self._limits
        if self.draining:
            return Refused.of(work, "draining", "this instance is going away")
        if Owner(work.request, work.attempt) in self._ledger:
            return Refused.of(work, "invalid", "it was aborted here, and a transfer of it has not ended yet")
        if work.context_tokens > limits.max_model_tokens:
            what = f"{work.context_tokens} tokens, {limits.max_model_tokens} fit here"
            return Refused.of(work, "too_long", what)
        full = self.queued_tokens + work.context_tokens > limits.queue_tokens and self._waiting
        if full or len(self._waiting) >= limits.queue_requests:
            return Refused.of(work, "queue_full", f"{self.queued_requests} requests wait here")
        return unsound(work, limits.vocabulary)

    def _attempt_of(self, request: RequestId) -> int | None:
        return max((work.attempt for work in self.works() if work.request == request), default=None)
