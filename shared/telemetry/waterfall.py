"""Where the time of a request went: its spans put in order, and the gaps between them named. Pure.

The stages of the paper (DistServe, OSDI'24, section 6.3): prefill queue, prefill, transfer, decode queue, decode.
Around them are HTTP, the tokenizer, the scheduler, and the bus. Every moment of a request is counted once.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.telemetry import traces
from shared.telemetry.trace_reader import Span

Kind = Literal["paper", "around", "bus"]

STAGES: dict[str, tuple[str, Kind]] = {
    traces.GATEWAY_TOKENIZE: ("tokenize", "around"),
    traces.SCHEDULER_QUEUE: ("scheduler queue", "around"),
    traces.PREFILL_QUEUE: ("prefill queue", "paper"),
    traces.PREFILL_FORWARD: ("prefill", "paper"),
    traces.DECODE_QUEUE: ("decode queue", "paper"),
    traces.KV_TRANSFER: ("KV transfer", "paper"),
    traces.DECODE_GENERATE: ("decode", "paper"),
}
GAPS: dict[str, tuple[str, Kind]] = {  # by the stage that follows
    traces.GATEWAY_TOKENIZE: ("HTTP in", "around"),
    traces.SCHEDULER_QUEUE: ("bus to scheduler", "bus"),
    traces.PREFILL_QUEUE: ("bus to prefill", "bus"),
    traces.DECODE_QUEUE: ("bus to decode", "bus"),
}
RECOVERY: tuple[str, Kind] = ("recovery", "bus")
BETWEEN: tuple[str, Kind] = ("between stages", "around")
FIRST_TOKEN_OUT = "first token out"
LEAST_GAP_NS = 10_000  # shorter ones count, but have no line


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    kind: Kind
    instance: str  # "" for a gap
    attempt: int
    start_seconds: float  # from the call's start
    seconds: float  # what no earlier stage covers


@dataclass(frozen=True, slots=True)
class Transfer:
    bytes: int
    blocks: int
    transport: str
    seconds: float  # of the stage: waiting for a slot, asking, moving
    move_seconds: float  # first to last byte

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes / self.move_seconds / 1e9 if self.move_seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """One request (a call with n=3 has three), all attempts. Seconds count from the call's start."""

    call: str
    request: str
    trace: str
    started_ns: int  # Unix time
    seconds: float
    status: int
    finish: str
    prompt_tokens: int
    output_tokens: int
    arrived_seconds: float  # its last byte was here
    first_token_seconds: float | None
    last_token_seconds: float | None
    ttft_target_seconds: float | None  # as the gateway judged it
    tpot_target_seconds: float | None
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]

    @property
    def attempts(self) -> int:
        return 1 + max((stage.attempt for stage in self.stages), default=0)

    @property
    def ttft_seconds(self) -> float | None:
        return None if self.first_token_seconds is None else self.first_token_seconds - self.arrived_seconds

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per output token after the first."""
        if self.first_token_seconds is None or self.last_token_seconds is None or self.output_tokens < 2:
            return None
        return max(0.0, self.last_token_seconds - self.first_token_seconds) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """A latency target, and what used it. TPOT: per token."""

    name: Literal["TTFT", "TPOT"]
    target_seconds: float
    used_seconds: float
    parts: tuple[tuple[str, float], ...]  # stage, seconds; the largest first

    @property
    def met(self) -> bool:
        return self.used_seconds <= self.target_seconds


def waterfalls(call: Span, spans: Sequence[Span]) -> list[Waterfall]:
    """Of every request of a call, in the order of its choices. `spans`: all of its trace, from every service."""
    by_request: dict[str, list[Span]] = defaultdict(list)
    shared = [span for span in spans if span.name == traces.GATEWAY_TOKENIZE and span.parent == call.id]
    for span in spans:
        if span.name in STAGES and span.request.rpartition("-")[0] == call.request:
            by_request[span.request].append(span)
    if not by_request:
        return [_waterfall(call, call.request, shared)]
    names = sorted(by_request, key=lambda name: int(name.rpartition("-")[2]))
    return [_waterfall(call, name, [*shared, *by_request[name]]) for name in names]


def budgets(waterfall: Waterfall, ttft_seconds: float | None, tpot_seconds: float | None) -> list[Budget]:
    """What each target was used up by; only targets that are given and times that are known."""
    found: list[Budget] = []
    first, last = waterfall.first_token_seconds, waterfall.last_token_seconds
    if ttft_seconds is not None and first is not None and waterfall.ttft_seconds is not None:
        computed = max((s.start_seconds + s.seconds for s in waterfall.stages if s.name == "prefill"), default=first)
        parts = _spent(waterfall.stages, waterfall.arrived_seconds, min(computed, first), 1.0)
        if computed < first:  # it leaves beside whatever comes next
            parts = tuple(sorted((*parts, (FIRST_TOKEN_OUT, first - computed)), key=lambda part: -part[1]))
        found.append(Budget("TTFT", ttft_seconds, waterfall.ttft_seconds, parts))
    if tpot_seconds is not None and first is not None and last is not None and waterfall.tpot_seconds is not None:
        parts = _spent(waterfall.stages, first, last, 1.0 / (waterfall.output_tokens - 1))
        found.append(Budget("TPOT", tpot_seconds, waterfall.tpot_seconds, parts))
    return found


def _waterfall(call: Span, request: str, spans: Sequence[Span]) -> Waterfall:
    ordered = sorted(spans, key=lambda span: (span.start_ns, span.end_ns))
    about = call.attributes
    generated = [span for span in ordered if span.name == traces.DECODE_GENERATE]
    forwards = [span for span in ordered if span.name == traces.PREFILL_FORWARD]
    tokenized = next((span.start_ns for span in ordered if span.name == traces.GATEWAY_TOKENIZE), call.start_ns)
    arrived = _seconds(call, tokenized)
    return Waterfall(
        call=call.request,
        request=request,
        trace=call.trace,
        started_ns=call.start_ns,
        seconds=_seconds(call, call.end_ns),
        status=about.get(traces.HTTP_STATUS, 0),
        finish=", ".join(about.get(traces.RESPONSE_FINISH_REASONS, ())),
        prompt_tokens=about.get(traces.INPUT_TOKENS, 0),
        output_tokens=generated[-1].attributes[traces.OUTPUT_TOKENS] if generated else int(bool(forwards)),
        arrived_seconds=arrived,
        first_token_seconds=_first_token(call, arrived, forwards),
        last_token_seconds=_seconds(call, generated[-1].end_ns) if generated else None,
        ttft_target_seconds=about.get(traces.TTFT_TARGET),
        tpot_target_seconds=about.get(traces.TPOT_TARGET),
        stages=tuple(_stages(call, ordered)),
        transfers=tuple(_transfer(span) for span in ordered if span.name == traces.KV_TRANSFER),
    )


def _first_token(call: Span, arrived: float, forwards: Sequence[Span]) -> float | None:
    """When its client had it. What the call says is of its first choice; the token of another may be computed later."""
    told = call.attributes.get(traces.TIME_TO_FIRST_CHUNK)
    if told is None:
        return None
    return max([arrived + told, *(_seconds(call, span.end_ns) for span in forwards[:1])])


def _stages(call: Span, ordered: Sequence[Span]) -> list[Stage]:
    stages: list[Stage] = []
    cursor_ns, attempt = call.start_ns, 0
    for span in ordered:
        if span.start_ns - cursor_ns >= LEAST_GAP_NS:
            name, kind = RECOVERY if span.attempt > attempt else GAPS.get(span.name, BETWEEN)
            stages.append(_stage(call, name, kind, "", span.attempt, cursor_ns, span.start_ns))
        name, kind = STAGES[span.name]
        start_ns = min(max(span.start_ns, cursor_ns), max(span.end_ns, cursor_ns))
        stages.append(_stage(call, name, kind, span.instance, span.attempt, start_ns, max(span.end_ns, start_ns)))
        cursor_ns, attempt = max(cursor_ns, span.end_ns), max(attempt, span.attempt)
    if call.end_ns - cursor_ns >= LEAST_GAP_NS:
        stages.append(_stage(call, "HTTP out", "around", "", attempt, cursor_ns, call.end_ns))
    return stages


def _stage(call: Span, name: str, kind: Kind, instance: str, attempt: int, start_ns: int, end_ns: int) -> Stage:
    return Stage(name, kind, instance, attempt, _seconds(call, start_ns), (end_ns - start_ns) / 1e9)


def _transfer(span: Span) -> Transfer:
    about = span.attributes
    return Transfer(
        bytes=about[traces.KV_BYTES],
        blocks=about[traces.KV_BLOCKS],
        transport=about[traces.KV_TRANSPORT],
        seconds=(span.end_ns - span.start_ns) / 1e9,
        move_seconds=about[traces.KV_MOVE_SECONDS],
    )


def _spent(stages: Sequence[Stage], start: float, end: float, share: float) -> tuple[tuple[str, float], ...]:
    """Seconds of each stage between `start` and `end`, times `share`; the largest first."""
    spent: dict[str, float] = defaultdict(float)
    for stage in stages:
        begin, stop = max(start, stage.start_seconds), min(end, stage.start_seconds + stage.seconds)
        if stop > begin:
            spent[stage.name] += (stop - begin) * share
    return tuple(sorted(spent.items(), key=lambda part: -part[1]))


def _seconds(call: Span, moment_ns: int) -> float:
    return (moment_ns - call.start_ns) / 1e9
