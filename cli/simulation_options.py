"""Options that `simulate`, `goodput` and `plan` share, and what is made of them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.problems import Problem
from cli.run_folder import RUNS, TRAFFIC
from services.scheduler.simulator.profile import Profile, load_profile
from services.scheduler.simulator.simulation import Policy
from services.scheduler.simulator.workload import Trace, as_recorded, draw, read_trace, resample

RECORDED = "recorded"

ProfileName = Annotated[
    str, typer.Option("--profile", metavar="NAME_OR_FILE", help="A shipped profile or one that `profile` wrote.")
]
ModelName = Annotated[str, typer.Option("--model", help="A model of the profile.", show_default="its only one")]
PlacementText = Annotated[
    str, typer.Option("--placement", help='"2x tp2,pp1 + 1x tp1,pp1" (prefill + decode) or "2x tp1,pp1 colocated".')
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace", help="JSON lines of arrival_s, input_len, output_len; or a folder of such.", show_default=False
    ),
]
Workload = Annotated[
    str,
    typer.Option(
        "--workload",
        metavar="NAME",
        help="chatbot, code, summarization, fixed:INPUT/OUTPUT, or recorded: what the last run of `up` has served.",
    ),
]
SIMULATED, FOR_A_RATE, FOR_A_PLAN = 1000, 2000, 4000  # requests, unless told otherwise


def _requests(default: str) -> Any:
    return typer.Option("--requests", min=1, help="How many.", show_default=default)


Requests = Annotated[int | None, _requests(f"the trace's, or {SIMULATED}")]
RequestsForRate = Annotated[int | None, _requests(f"the trace's, or {FOR_A_RATE}")]
RequestsForPlan = Annotated[int | None, _requests(f"the trace's, {FOR_A_PLAN} at most")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of lengths and arrivals.")]
Cv = Annotated[
    float | None,
    typer.Option(
        "--cv",
        min=0,
        help="Gaps drawn anew with this variation: 1 Poisson, more is burstier.",
        show_default="1, a trace's as recorded",
    ),
]
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
Compat = Annotated[
    Literal["simdistserve"] | None,
    typer.Option("--compat", help="By the rules of the authors' simulator, faults included.", show_default=False),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, as PNG, SVG or PDF.", show_default=False)
]
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


def refuse_a_plot_by_their_rules(compat: str | None, plot: Path | None) -> None:
    if compat is not None and plot is not None:
        raise Problem(f"--plot draws what our simulator does, not --compat {compat}: leave one of them out")


def trace_path(file: Path | None, workload: str) -> Path | None:
    """Where the requests are read from; None if they are drawn from a law."""
    if file is not None or workload != RECORDED:
        return file
    runs = [folder for folder in RUNS.glob(f"*/{TRAFFIC}") if any(one.stat().st_size for one in folder.iterdir())]
    if not runs:
        raise Problem(
            f"--workload {RECORDED}: no run in {RUNS} has served a request yet: start one with ./distserve up"
        )
    return max(runs)


def requests_at_unit_rate(file: Path | None, workload: str, count: int | None, seed: int, cv: float | None) -> Trace:
    """From a file or drawn, at mean rate 1/s. More requests than a file has are drawn alike."""
    if file is None:
        return draw(workload, count or SIMULATED, seed, 1.0 if cv is None else cv)
    trace = read_trace(file)
    if count is None or count <= len(trace):
        return as_recorded(trace, count or len(trace), seed, cv)
    return resample(trace, count, seed, cv)


def draws_at_unit_rate(
    file: Path | None, workload: str, count: int | None, seed: int, cv: float | None, draws: int
) -> list[Trace]:
    """`draws` independent ones. After the first, those of a file are drawn alike."""
    first = requests_at_unit_rate(file, workload, count, seed, cv)
    if file is None:
        return [first, *(requests_at_unit_rate(None, workload, count, seed + n, cv) for n in range(1, draws))]
    trace = read_trace(file)
    return [first, *(resample(trace, len(first), seed + n, cv) for n in range(1, draws))]


def draws_for_goodput(
    file: Path | None, workload: str, count: int | None, seed: int, cv: float | None, draws: int
) -> list[Trace]:
    """`count`: None: what a trace has. No more of it than it has: it is served as it is, once."""
    if file is not None and (count is None or count <= len(read_trace(file))):
        draws = 1
    return draws_at_unit_rate(file, workload, count, seed, cv, draws)


def recorded_rate(file: Path | None) -> float:
    """Of the whole trace in `file`; 1/s where there is none."""
    return 1.0 if file is None else read_trace(file).rate
