"""The authors' own simulator (github.com/LLMServe/DistServe, simdistserve), by its rules and with its faults: what
published figures are held against. It decides nothing here.

Where it differs from `simulate`: prefill batches take whatever waits; a decode step computes up to 50,000 tokens of
context whatever the memory, and who waits holds none; KV moves in no time; an answer of n tokens takes n steps, and its
time per token is over n; the sequences of a pipeline are not kept in even micro-batches; a prefill adds a millisecond
per stage to every stage; a colocated instance never mixes prefill and decoding.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, pairwise
from typing import Any

import numpy as np

from services.scheduler.simulator.outcome import Attained
from services.scheduler.simulator.placement import BadPlacement
from services.scheduler.simulator.profile import Coefficients, Overhead
from services.scheduler.simulator.simulation import Setup
from services.scheduler.simulator.workload import Trace

STEP_TOKENS = 50_000


def simulate_as_authors(setup: Setup, trace: Trace) -> Attained:
    """BadPlacement for several instances of a phase, which it does not know."""
    setup.check()
    prefill, decode = setup.placement.prefill or setup.placement.decode, setup.placement.decode
    if prefill.count != 1 or decode.count != 1:
        raise BadPlacement(f"{setup.placement}: their simulator knows one instance of each phase")
    memory = setup.model.kv_capacity(prefill.tp, prefill.pp, setup.profile.memory_bytes)
    if max(trace.inputs) > memory:
        raise BadPlacement(
            f"{setup.placement}: a prompt of {max(trace.inputs)} tokens never fits: theirs would not end"
        )
    run = _Run(trace, setup.profile.overhead, memory)
    first = run.pipeline(setup.model.times[prefill.tp], prefill.pp)
    run.decoders = run.pipeline(setup.model.times[decode.tp], decode.pp) if setup.placement.prefill else first
    run.serve(first)
    return Attained(np.array(run.ttft) / 1000, np.array(run.tpot) / 1000)


class _Stage:
    """A worker: one pipeline stage, which prefers prefill."""

    def __init__(self, times: Coefficients, pp: int) -> None:
        self.times, self.pp, self.busy = times, pp, False
        self.next: _Stage | None = None
        self.first = False
        self.prefill: deque[list[int]] = deque()  # batches; single requests before the first stage
        self.decode: deque[int] = deque()


class _Run:
    """Milliseconds."""

    def __init__(self, trace: Trace, overhead: Overhead, memory: int) -> None:
        self._trace, self._overhead, self._memory = trace, overhead, memory
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._arrivals = [1000 * arrival for arrival in trace.arrivals]
        self._steps = [0] * len(trace)
        self._first_at = [0.0] * len(trace)
        self.ttft, self.tpot = [np.inf] * len(trace), [np.inf] * len(trace)
        self.decoders: _Stage

    def pipeline(self, times: Coefficients, pp: int) -> _Stage:
        stages = [_Stage(times, pp) for _ in range(pp)]
        for one, following in pairwise(stages):
            one.next = following
        stages[0].first = True
        return stages[0]

    def serve(self, first: _Stage) -> None:
        for request, arrival in enumerate(self._arrivals):
            self._at(arrival, self._arrived, first, request)
        while self._heap:
            now, _, call, what = heappop(self._heap)
            call(now, *what)

    def _at(self, time: float, call: Callable[..., None], *what: object) -> None:
        heappush(self._heap, (time, next(self._order), call, what))

    def _arrived(self, now: float, first: _Stage, request: int) -> None:
        first.prefill.append([request])
        self._wake(first, now)

    def _wake(self, stage: _Stage, now: float) -> None:
        if stage.busy or not (stage.prefill or stage.decode):
            return
        stage.busy = True
        if stage.prefill:
            batch = self._prefill_batch(stage)
            self._at(now + self._prefill_ms(stage, batch), self._prefilled, stage, batch)
        else:
            batch, context = self._decode_batch(stage)
            self._at(now + self._decode_ms(stage, len(batch), context), self._decoded, stage, batch)

    def _prefill_batch(self, stage: _Stage) -> list[int]:
        if not stage.first:
            return stage.prefill.popleft()
        batch, room = [], self._memory
        while stage.prefill and self._trace.inputs[stage.prefill[0][0]] <= room:
            batch += stage.prefill.popleft()
            room -= self._trace.inputs[batch[-1]]
        return batch

    def _prefill_ms(self, stage: _Stage, batch: list[int]) -> float:
        a, b, c = stage.times.prefill
        lengths = [self._trace.inputs[request] for request in batch]
        tokens, squares = sum(lengths), sum(length * length for length in lengths)
        own = (a + b * tokens + c * squares) / stage.pp + self._overhead.prefill_stage_ms * stage.pp
        return own + self._of_first(stage, tokens)

    def _decode_batch(self, stage: _Stage) -> tuple[list[int], int]:
        """(batch, its tokens of context with the new ones)."""
        batch: list[int] = []
        context = 0
        while stage.decode:
            request = stage.decode[0]
            tokens = self._trace.inputs[request] + self._steps[request] + 1
            if context + tokens > STEP_TOKENS:
                break
            context += tokens
            batch.append(stage.decode.popleft())
        return batch, context

    def _decode_ms(self, stage: _Stage, requests: int, context: int) -> float:
        times = stage.times
        a, b, c = times.decode_small if requests < times.large_batch else times.decode_large
        return (a + b * context + c * requests) / stage.pp + self._of_first(stage, context - requests)

    def _of_first(self, stage: _Stage, tokens: int) -> float:
        overhead = self._overhead
        return overhead.iteration_ms + overhead.context_token_ms * tokens if stage.first else 0.0

    def _prefilled(self, now: float, stage: _Stage, batch: list[int]) -> None:
        stage.busy = False
        if stage.next is not None:
            stage.next.prefill.append(batch)
        for request in batch if stage.next is None else ():
            self._first_at[request] = now
            self.ttft[request] = now - self._arrivals[request]
            self.decoders.decode.append(request)
        self._wake(stage, now)
        self._wake(stage.next or self.decoders, now)

    def _decoded(self, now: float, stage: _Stage, batch: list[int]) -> None:
        stage.busy = False
        if stage.next is not None:
            stage.next.decode.extend(batch)
        for request in batch if stage.next is None else ():
            self._steps[request] += 1
            if self._steps[request] < self._trace.outputs[request]:
                self.decoders.decode.append(request)
            else:
                self.tpot[request] = (now - self._first_at[request]) / self._trace.outputs[request]
        self._wake(stage, now)
        self._wake(stage.next or self.decoders, now)
