"""Where the time of a run's requests went, if the server is ours and its traces are on this machine."""

import time
from collections import defaultdict
from pathlib import Path

from shared.telemetry import trace_reader, traces
from shared.telemetry.waterfall import waterfalls

PAPER = ("prefill queue", "prefill", "KV transfer", "decode queue", "decode")
REST = "rest"  # HTTP, tokenizer, scheduler, bus


def stages_of_runs(folder: Path | None, names: list[str]) -> list[dict[str, float]]:
    """For each run, by its name: mean seconds of a request by stage. Empty where nothing is known."""
    if folder is None or not folder.is_dir():
        return [{} for _ in names]
    time.sleep(traces.SETTLE_SECONDS)
    calls = [(call, _run_of(call)) for call in trace_reader.calls_in(folder)]
    ours = [(call, run) for call, run in calls if run in names]
    spans = trace_reader.spans_in(folder, {call.trace for call, _ in ours})
    seconds: dict[str, dict[str, float]] = {name: defaultdict(float) for name in names}
    counts: dict[str, int] = defaultdict(int)
    for call, run in ours:
        for waterfall in waterfalls(call, spans[call.trace]):
            counts[run] += 1
            for stage in waterfall.stages:
                seconds[run][stage.name if stage.kind == "paper" else REST] += stage.seconds
    return [
        {stage: seconds[name][stage] / counts[name] for stage in (*PAPER, REST)} if counts[name] else {}
        for name in names
    ]


def _run_of(call: trace_reader.Span) -> str:
    """A request of the run `bench-1-0` is called `bench-1-0-17` by its client."""
    known = call.attributes.get(traces.CLIENT_ID, ())
    return known[0].rpartition("-")[0] if known else ""
