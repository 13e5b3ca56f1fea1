"""`./distserve bench`: open-loop load against an OpenAI-compatible server, and what it stands."""

import asyncio
import math
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import out_file
from cli import simulation_options as shared_options
from cli.bench import options
from cli.bench.goodput_command import goodput
from cli.problems import Problem
from cli.run_folder import RUNS, announced_by, newest_running
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.workload import Trace

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_REQUESTS = 100
RESULTS = RUNS.parent / "bench"

bench = typer.Typer(help="Measure a server under open-loop load; compare; measure the goodput of placements.")


@bench.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    url: options.Url = "",
    model: options.ModelName = "",
    api_key: options.ApiKey = "",
    tokenizer: options.TokenizerFolder = None,
    workload: shared_options.Workload = "chatbot",
    trace: shared_options.TraceFile = None,
    scale_lengths: options.ScaleLengths = 1.0,
    rate: options.Rate = None,
    rates: options.Rates = "",
    search: options.Search = False,
    tolerance: options.Tolerance = 0.05,
    slo_ttft: shared_options.SloTtft = 0.25,
    slo_tpot: shared_options.SloTpot = 0.1,
    slo_scale: options.SloScale = 1.0,
    target: shared_options.Share = 0.9,
    requests: options.Requests = None,
    duration: options.Duration = None,
    warmup: options.Warmup = 5,
    cv: shared_options.Cv = None,
    seed: shared_options.Seed = 0,
    out: options.Out = None,
) -> None:
    """Send requests when they are due, whatever became of the others, and see how many are served as promised."""
    if context.invoked_subcommand is not None:
        return
    from cli.bench.server import find_server

    file = shared_options.trace_path(trace, workload)
    try:
        promise = Promise(ttft=slo_ttft * slo_scale, tpot=slo_tpot * slo_scale, share=target)
        wanted = _rates(rate, rates, search, shared_options.recorded_rate(file))
        counts = [_requests(requests, duration, one) for one in wanted]
        unit = shared_options.requests_at_unit_rate(file, workload, max(counts) + warmup, seed, cv)
        unit = unit.scaled(scale_lengths)
    except ValueError as error:
        raise Problem(str(error)) from error
    result = out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    out_file.make_way(result)
    base = _url(url)
    server = asyncio.run(find_server(base, model, api_key, tokenizer, seed))
    _check_lengths(unit, server.most_tokens, scale_lengths)
    settings = {"cv": cv, "seed": seed, "scale_lengths": scale_lengths, "warmup": warmup}
    from cli.bench.session import Session

    session = Session(server, unit, warmup, promise, settings, result, announced_by(base, RUNS))
    session.run(wanted, counts, tolerance if search else None)


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="What `./distserve bench` wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json")],
) -> None:
    """Two results side by side, with 95 % intervals of every figure and of B / A."""
    from cli.bench.compare import compare_reports
    from cli.bench.report import read

    compare_reports(Console(), (a.name, read(a)), (b.name, read(b)))


bench.command()(goodput)


def _url(given: str) -> str:
    if given:
        return given.rstrip("/").removesuffix("/v1")
    running = newest_running(RUNS)
    return running.gateway_url if running is not None else DEFAULT_URL


def _rates(rate: float | None, rates: str, search: bool, default: float) -> list[float]:
    if rates and (search or rate is not None):
        raise Problem("--rates says all: leave out --rate and --search")
    try:
        wanted = [float(text) for text in rates.split(",")] if rates else [default if rate is None else rate]
    except ValueError as error:
        raise Problem(f"--rates {rates}: wanted numbers, for example 1,2,4") from error
    if not all(0 < one < math.inf for one in wanted):
        raise Problem("a rate must be more than 0, and finite")
    return wanted


def _requests(requests: int | None, duration: float | None, rate: float) -> int:
    if requests is not None and duration is not None:
        raise Problem("--requests and --duration exclude each other")
    return max(1, round(rate * duration)) if duration is not None else requests or DEFAULT_REQUESTS


def _check_lengths(trace: Trace, most_tokens: int | None, scale: float) -> None:
    longest = max(prompt + answer for prompt, answer in zip(trace.inputs, trace.outputs, strict=True))
    if most_tokens is not None and longest > most_tokens:
        fits = 0.99 * scale * most_tokens / longest
        raise Problem(
            f"{trace.name} has a request of {longest} tokens, the server's model takes {most_tokens}: "
            f"--scale-lengths {fits:.2g} makes all of them fit"
        )
