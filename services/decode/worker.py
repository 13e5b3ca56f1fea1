"""Batch -> tokens: iteration-level batching over the sequences that own blocks here."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from services.decode.sequence import Sequence
from shared.engine.pieces import Draw, Drawn, NonFiniteLogits, Piece
from shared.engine.thread import EngineThread, StepHung
from shared.kv.layout import blocks_for
from shared.kv.ledger import Ledger
from shared.policy.decode import Order, plan_step
from shared.policy.finish import finish_of
from shared.policy.step_failures import StepFailures
from shared.telemetry import traces
from shared.telemetry.metrics import DecodeMetrics
from shared.worker.breakdown import Breakdown
from shared.worker.teller import Teller

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    order: Order  # matters only where contexts are prefilled here
    prefill_tokens: int
    block_tokens: int


class DecodeWorker:
    """Owns the running sequences. Blocks change hands only between steps."""

    def __init__(
        self,
        engine: EngineThread,
        ledger: Ledger,
        teller: Teller,
        metrics: DecodeMetrics,
        limits: BatchLimits,
        breakdown: Breakdown,
    ) -> None:
        self._engine, self._ledger, self._teller = engine, ledger, teller
        self._metrics, self._limits, self._breakdown = metrics, limits, breakdown
        self.members: list[Sequence] = []  # in order of admission
        self._wake = asyncio.Event()
        self._freed = asyncio.Event()
        self._failures = StepFailures()

    def join(self, sequence: Sequence) -> None:
        self.members.append(sequence)
        self._wake.set()

    def wake(self) -> None:
        """Something changed that the next plan should see: a drop, or blocks."""
        self._wake.set()

    async def room_changed(self) -> None:
        """Wait until blocks were freed or a member left."""
        await self._freed.wait()
        self._freed.clear()

    async def run(self) -> None:
        while not self._breakdown.reason:
            self._drop_aborted()
            pieces = await self._plan()
            if pieces:
                await self._step(pieces)
            else:
                await self._teller.flush()
                await self._wake.wait()
                self._wake.clear()

    def _drop_aborted(self) -> None:
        for member in [m for m in self.members if m.arrival.dropped]:
            self._remove(member, "aborted")

    async def _plan(self) -> list[tuple[Sequence, int]]:
        """The next batch, with blocks for every token it will write. Who must leave goes back to its gateway."""
        limits = self._limits
        plan = plan_step(self.members, limits.order, limits.block_tokens, self._ledger.free, limits.prefill_tokens)
        pieces = [(self.members[index], count) for index, count in plan.pieces]
        for member in [self.members[index] for index in plan.preempt]:
            self._metrics.preempted.inc()
            await self._give_back(member, "preempted: out of KV blocks")
        for member, count in pieces:
            missing = blocks_for(member.computed + count, limits.block_tokens) - member.blocks
            if missing > 0:
                self._ledger.grow(member.arrival.owner, missing)
        return pieces

    async def _step(self, pieces: list[tuple[Sequence, int]]) -> None:
        step = self._engine.begin([_piece(member, count) for member, count in pieces])
        await self._teller.flush()  # the previous step's tokens leave while this one is computed
        try:
            drawn = await self._engine.end(step)
        except StepHung as error:
            self._breakdown.declare(str(error))
            return
        except Exception as error:  # whatever the engine met: who is concerned goes back, the instance lives on
            culprits = [pieces[i] for i in error.pieces] if isinstance(error, NonFiniteLogits) else pieces
            self._failures.failed([member.work.request for member, _ in culprits])
            self._breakdown.note_failures(self._failures.in_a_row, error)
            self._metrics.steps_failed.inc()
            log.exception("decode_step_failed", sequences=len(pieces), given_back=len(culprits))
            for member, _ in culprits:
                await self._give_back(member, f"decode failed: {type(error).__name__}", failed=True)
            return
        self._failures.succeeded()
        self._metrics.step_ended(self._engine.step_seconds, sum(count for _, count in pieces))
        for (member, count), result in zip(pieces, drawn, strict=True):
            member.computed += count
            if result is not None and not member.arrival.dropped:
                self._record(member, result)

    def _record(self, member: Sequence, drawn: Drawn) -> None:
        work = member.work
        member.append(drawn.token)
        finish = finish_of(work.sampling, drawn.token, len(member.generated))
        self._teller.tell(work.request, drawn.token, drawn.logprobs, finish)
        if finish is not None:
            self._remove(member, finish)

    async def _give_back(self, member: Sequence, reason: str, *, failed: bool = False) -> None:
        self._remove(member, "interrupted")
        if not member.arrival.dropped:
            await self._teller.interrupt(member.work, reason, failed=failed)

    def _remove(self, member: Sequence, outcome: str) -> None:
        self.members.remove(member)
        self._ledger.release(member.arrival.owner)
        self._freed.set()
        self._metrics.decode_seconds.observe((time.time_ns() - member.started_ns) / 1e9)
        attributes = {traces.OUTPUT_TOKENS: len(member.generated), traces.FINISH_REASON: outcome}
        member.arrival.record_span(traces.DECODE_GENERATE, member.started_ns, attributes)


def _piece(member: Sequence, count: int) -> Piece:
    start, end = member.computed, member.computed + count
    draw = Draw(member.work.sampling, member.work.prompt, member.generated) if end == member.tokens else None
    return Piece(tokens=member.text[start:end], start=start, blocks=member.block_table, draw=draw)
