"""Options that `simulate`, `goodput` and `plan` share, and what is made of them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.problems import Problem
from services.scheduler.simulator.profile import Profile, load_profile
from services.scheduler.simulator.simulation import Policy
from services.scheduler.simulator.workload import Trace, draw, read_trace, resample

ProfileName = Annotated[
    str, typer.Option("--profile", metavar="NAME_OR_FILE", help="A shipped profile or one that `profile` wrote.")
]
ModelName = Annotated[str, typer.Option("--model", help="A model of the profile.", show_default="its only one")]
PlacementText = Annotated[
    str, typer.Option("--placement", help='"2x tp2,pp1 + 1x tp1,pp1" (prefill + decode) or "2x tp1,pp1 colocated".')
]
TraceFile = Annotated[
    Path | None, typer.Option("--trace", help="JSON lines of arrival_s, input_len, output_len.", show_default=False)
]
Workload = Annotated[
    str, typer.Option("--workload", metavar="NAME", help="chatbot, code, summarization or fixed:INPUT/OUTPUT.")
]
Requests = Annotated[
    int | None, typer.Option("--requests", min=1, help="How many.", show_default="the trace's, or 1000")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of lengths and arrivals.")]
Cv = Annotated[float, typer.Option("--cv", min=0, help="Variation of the gaps: 1 Poisson, more is burstier.")]
SloTtft = Annotated[float, typer.Option("--slo-ttft", min=0, metavar="SECONDS", help="To the first token.")]
SloTpot = Annotated[float, typer.Option("--slo-tpot", min=0, metavar="SECONDS", help="For each further token.")]
PolicyName = Annotated[Literal["prefill_priority", "chunked"], typer.Option("--policy", help="Of colocated instances.")]
BatchTokens = Annotated[
    int, typer.Option("--prefill-batch-tokens", min=0, help="L_m of prefill batches; 0: as the profile's times say.")
]
ChunkTokens = Annotated[int, typer.Option("--chunk-tokens", min=1, help="Of a step with chunks.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, help="Sequences of a decode instance.")]
Link = Annotated[
    float | None,
    typer.Option("--link", metavar="GB/S", help="From prefill to decode.", show_default="the profile's, within a node"),
]
HopMilliseconds = Annotated[
    float | None, typer.Option("--hop-ms", min=0, help="One hop of the control plane.", show_default="the profile's")
]
Share = Annotated[float, typer.Option("--target", min=0.01, max=1, help="Share of requests that must keep both.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, max=10, help="Independent draws, for a confidence interval.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(name: str) -> Profile:
    try:
        return load_profile(name)
    except ValueError as error:
        raise Problem(str(error)) from error


def policy(
    order: Literal["prefill_priority", "chunked"], batch_tokens: int, chunk_tokens: int, max_batch: int
) -> Policy:
    return Policy(order=order, batch_tokens=batch_tokens, chunk_tokens=chunk_tokens, max_batch=max_batch)


def requests_at_unit_rate(file: Path | None, workload: str, count: int | None, seed: int, cv: float) -> Trace:
    """From a file or drawn, at mean rate 1/s. More requests than a file has are drawn alike."""
    if file is None:
        return draw(workload, count or 1000, seed, cv)
    trace = read_trace(file)
    if len(trace) > 1:
        trace = trace.stretched(trace.rate)
    if count is None or count <= len(trace):
        return trace.first(count or len(trace))
    return resample(trace, count, seed)


def recorded_rate(file: Path | None) -> float:
    """Of the whole trace in `file`; 1/s where there is none."""
    return 1.0 if file is None else read_trace(file).rate
