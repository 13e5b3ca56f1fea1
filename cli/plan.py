"""`./distserve plan`: which placement serves the most requests as promised for every GPU."""

import json
import math
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli import out_file
from cli import simulation_options as options
from cli.plan_file import compose_line, understand
from cli.problems import Problem
from cli.simulation_plots import plot_plan
from services.scheduler.planner.candidates import Cluster
from services.scheduler.planner.curve import curves_around
from services.scheduler.planner.goodput import Promise
from services.scheduler.planner.plan import make_plan
from services.scheduler.planner.search import CHUNKED, Question
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import is_shipped
from services.scheduler.simulator.workload import read_trace

NETWORKS = {"high": 100.0, "low": 3.125}  # GB/s between nodes: 800 and 25 Gbit/s
DRAWN = 4  # placements
ALGORITHM_1_FROM = 25.0  # GB/s: below, KV stays inside a node

GpusPerNode = Annotated[int, typer.Option(min=1, help="GPUs of a node.")]
Nodes = Annotated[int, typer.Option(min=1, help="Nodes.")]
Network = Annotated[str, typer.Option(metavar="high|low|GB/S", help="Between nodes; low: KV stays inside a node.")]
Rate = Annotated[
    float | None,
    typer.Option("--rate", min=0.001, help="Requests per second to be served.", show_default="as recorded, or 1"),
]
Servable = Annotated[
    bool | None,
    typer.Option(
        "--servable/--any-shape",
        help="Only instances that the engine can be started as: one GPU each.",
        show_default="--servable, with a shipped profile --any-shape",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that search.", show_default="cores")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the plan to this file.", show_default=False)]


def plan(
    model: options.ModelName = "",
    profile: options.ProfileName = "a100-80g-distserve",
    gpus_per_node: GpusPerNode = 8,
    nodes: Nodes = 1,
    network: Network = "low",
    trace: options.TraceFile = None,
    workload: options.Workload = "chatbot",
    servable: Servable = None,
    rate: Rate = None,
    slo_ttft: options.SloTtft = 0.25,
    slo_tpot: options.SloTpot = 0.1,
    target: options.Share = 0.9,
    requests: options.RequestsForPlan = None,
    seeds: options.Seeds = 3,
    seed: options.Seed = 0,
    cv: options.Cv = None,
    workers: Workers = None,
    out: Out = None,
    as_json: options.AsJson = False,
    plot: options.Plot = None,
) -> None:
    """Search placements for the highest per-GPU goodput, and say what binds."""
    loaded = options.load(profile)
    speed = _network(network)
    across = speed >= ALGORITHM_1_FROM
    if out is not None:
        out_file.make_way(out)
    try:
        trace = options.trace_path(trace, workload)
        count = requests or _most_requests(trace)
        question = Question(
            profile=loaded,
            model=loaded.model(model),
            cluster=Cluster(gpus_per_node, nodes),
            traces=tuple(options.draws_for_goodput(trace, workload, count, seed, cv, seeds)),
            promise=Promise(ttft=slo_ttft, tpot=slo_tpot, share=target),
            rate=options.recorded_rate(trace) if rate is None else rate,
            across_nodes=across,
            servable=not is_shipped(profile) if servable is None else servable,
            link_gigabytes_per_second=speed if across and nodes > 1 else loaded.link_gigabytes_per_second,
        )
        count = workers or len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            answer = make_plan(question, pool)
            if out is not None:
                out_file.write(out, json.dumps(answer, indent=2) + "\n")
            if plot is not None and answer["table"]:
                _plot(question, answer["table"][:DRAWN], pool, plot)
    except ValueError as error:
        raise Problem(str(error)) from error
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _show(answer, out)
    if answer["placement"] is None:
        raise Problem("no placement keeps these targets")


def _plot(question: Question, rows: list[dict[str, Any]], pool: Executor, file: Path) -> None:
    setups = []
    for row in rows:
        name = row["placement"]
        policy = replace(question.policy, order="chunked") if name.endswith(CHUNKED) else question.policy
        setups.append((question.setup(parse_placement(name.removesuffix(CHUNKED)), policy), row["goodput"]))
    curves = curves_around(setups, question.traces[0], question.promise, pool)
    promise = question.promise
    title = f"{question.model.name}, {question.traces[0].name}: TTFT {promise.ttft:g} s, TPOT {promise.tpot:g} s"
    plot_plan(rows, curves, promise.share, title, file)


def _most_requests(trace: Path | None) -> int:
    """A trace of many hours goes to every process with every search: its head is enough."""
    return options.FOR_A_PLAN if trace is None else min(options.FOR_A_PLAN, len(read_trace(trace)))


def _network(text: str) -> float:
    try:
        speed = NETWORKS.get(text) or float(text)
    except ValueError as error:
        raise Problem(f"--network {text}: high, low or a number of GB/s") from error
    if not 0 < speed < math.inf:
        raise Problem("--network must be more than 0 GB/s")
    return speed


def _show(answer: dict[str, Any], out: Path | None) -> None:
    console = Console()
    table = Table("placement", "GPUs", "requests/s", "per GPU", title="best per-GPU goodput first")
    for row in answer["table"][:12]:
        spread = f" ± {row['half_width']:.2f}" if row["half_width"] is not None else ""
        table.add_row(row["placement"], str(row["gpus"]), f"{row['goodput']:.2f}{spread}", f"{row['per_gpu']:.3f}")
    console.print(table)
    if answer["placement"] is not None:
        console.print(
            f"[bold]{answer['units']} x ({answer['placement']})[/bold], {answer['gpus']} GPUs, for {answer['rate']:g}/s"
        )
        console.print(f"What binds: {answer['binds']} ({answer['detail']})")
        console.print(f"Disaggregated or not: {answer['colocated']}")
        console.print(f"The paper's algorithm as published: {answer['published'] or 'finds nothing'}")
        console.print(_how_to_start(answer, out), soft_wrap=True, highlight=False)
        for row in answer["neighbours"]:
            console.print(f"  neighbour {row['placement']}: {row['per_gpu']:.3f} per GPU")
    for what, why in answer["impossible"].items():
        console.print(f"[dim]not possible: {what}: {why}[/dim]")
    console.print(f"[dim]{answer['searches']} searches, {answer['simulations']} simulations[/dim]")


def _how_to_start(answer: dict[str, Any], out: Path | None) -> str:
    try:
        plan = understand(answer, str(out or "found"))
    except Problem as problem:
        return f"To start it: {problem}"
    here = f"./distserve up --plan {out}" if out else "write it with --out FILE, then ./distserve up --plan FILE"
    running = "on a running stack with --no-deps prefill decode at its end"
    return f"On one machine: {here}\nIn containers: {compose_line(plan)} ({running})"
