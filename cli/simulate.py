"""`./distserve simulate` and `./distserve goodput`: a placement under traffic, in virtual time."""

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli import simulation_options as options
from cli.problems import Problem
from cli.simulation_plots import plot_goodput, plot_simulation
from services.scheduler.planner.curve import SHARES, attainment_curve
from services.scheduler.planner.goodput import Promise, goodput_as_authors
from services.scheduler.planner.goodput import goodput as find_goodput
from services.scheduler.simulator.outcome import Outcome, spread_of
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.simdistserve import simulate_as_authors
from services.scheduler.simulator.simulation import Setup
from services.scheduler.simulator.simulation import simulate as run_simulation
from services.scheduler.simulator.workload import Trace

Rate = Annotated[
    float | None, typer.Option("--rate", help="Requests per second.", show_default="as recorded, or 1 for a workload")
]


def simulate(
    placement: options.PlacementText,
    profile: options.ProfileName = "a100-80g-distserve",
    model: options.ModelName = "",
    trace: options.TraceFile = None,
    workload: options.Workload = "chatbot",
    rate: Rate = None,
    slo_ttft: options.SloTtft = 0.25,
    slo_tpot: options.SloTpot = 0.1,
    requests: options.Requests = None,
    seed: options.Seed = 0,
    cv: options.Cv = None,
    policy: options.PolicyName = "prefill_priority",
    prefill_batch_tokens: options.BatchTokens = 0,
    chunk_tokens: options.ChunkTokens = 512,
    max_batch: options.MaxBatch = 1024,
    link: options.Link = None,
    hop_ms: options.HopMilliseconds = None,
    compat: options.Compat = None,
    as_json: options.AsJson = False,
    plot: options.Plot = None,
) -> None:
    """Serve a trace or workload with a placement in virtual time, and see who is served as promised."""
    if rate is not None and not 0 < rate < math.inf:
        raise Problem("--rate must be more than 0")
    options.refuse_a_plot_by_their_rules(compat, plot)
    chosen = options.policy(policy, prefill_batch_tokens, chunk_tokens, max_batch)
    setup = _setup(profile, model, placement, chosen, link, hop_ms)
    try:
        trace = options.trace_path(trace, workload)
        unit = options.requests_at_unit_rate(trace, workload, requests, seed, cv)
        as_recorded = options.recorded_rate(trace) if rate is None else rate
        if compat is not None:
            _simulate_as_authors(setup, unit, as_recorded, Promise(ttft=slo_ttft, tpot=slo_tpot), as_json=as_json)
            return
        outcome = run_simulation(setup, unit.stretched(1 / as_recorded))
    except ValueError as error:
        raise Problem(str(error)) from error
    answer = {
        "placement": str(setup.placement),
        "gpus": setup.placement.gpus,
        "model": setup.model.name,
        "profile": setup.profile.name,
        "workload": unit.name,
        "rate": as_recorded,
        "slo_ttft_s": slo_ttft,
        "slo_tpot_s": slo_tpot,
        "attainment": outcome.attainment(slo_ttft, slo_tpot),
        **outcome.summary(),
        "occupancy": _occupancy(outcome),
    }
    if plot is not None:
        plot_simulation(answer, outcome.ttft, outcome.tpot, plot)
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        _show(answer)


def goodput(
    placement: options.PlacementText,
    profile: options.ProfileName = "a100-80g-distserve",
    model: options.ModelName = "",
    trace: options.TraceFile = None,
    workload: options.Workload = "chatbot",
    slo_ttft: options.SloTtft = 0.25,
    slo_tpot: options.SloTpot = 0.1,
    target: options.Share = 0.9,
    requests: options.RequestsForRate = None,
    seeds: options.Seeds = 3,
    seed: options.Seed = 0,
    cv: options.Cv = None,
    policy: options.PolicyName = "prefill_priority",
    prefill_batch_tokens: options.BatchTokens = 0,
    chunk_tokens: options.ChunkTokens = 512,
    max_batch: options.MaxBatch = 1024,
    link: options.Link = None,
    hop_ms: options.HopMilliseconds = None,
    compat: options.Compat = None,
    as_json: options.AsJson = False,
    plot: options.Plot = None,
) -> None:
    """Find the highest rate at which enough requests keep both targets, and divide it by the GPUs."""
    options.refuse_a_plot_by_their_rules(compat, plot)
    chosen = options.policy(policy, prefill_batch_tokens, chunk_tokens, max_batch)
    setup = _setup(profile, model, placement, chosen, link, hop_ms)
    try:
        if math.isinf(slo_ttft) and math.isinf(slo_tpot):
            raise ValueError("targets that every rate keeps: one of them must be finite")
        wanted = Promise(ttft=slo_ttft, tpot=slo_tpot, share=target)
        trace = options.trace_path(trace, workload)
        count = requests or (options.FOR_A_RATE if trace is None else None)
        traces = options.draws_for_goodput(trace, workload, count, seed, cv, seeds)
        if compat is not None:
            found = goodput_as_authors(setup, traces, wanted, tolerance=0.01)
        else:
            found = find_goodput(setup, traces, wanted, seeds=len(traces), tolerance=0.01, least=len(traces[0]))
    except ValueError as error:
        raise Problem(str(error)) from error
    gpus = setup.placement.gpus
    answer = {
        "placement": str(setup.placement),
        "gpus": gpus,
        "goodput": found.rate,
        "half_width": found.half_width,
        "per_gpu": found.rate / gpus,
        "rates": found.rates,
        "simulations": found.simulations,
    }
    if plot is not None:
        if not found.rate:
            raise Problem("--plot: there is no rate at which the targets are kept")
        curve = attainment_curve(setup, traces[0], wanted, [factor * found.rate for factor in SHARES])
        plot_goodput(answer, curve, target, plot)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    spread = f" ± {found.half_width:.2f}" if found.half_width is not None else ""
    typer.echo(f"{setup.placement}: {found.rate:.2f}{spread} requests/s, {found.rate / gpus:.3f} per GPU ({gpus})")


def _simulate_as_authors(setup: Setup, unit: Trace, rate: float, promise: Promise, *, as_json: bool) -> None:
    """What their simulator tells: nothing but who was served in time."""
    attained = simulate_as_authors(setup, unit.stretched(1 / rate))
    kept = attained.attainment(promise.ttft, promise.tpot)
    answer = {"placement": str(setup.placement), "requests": len(unit), "rate": rate, "attainment": kept}
    answer |= {"ttft_s": spread_of(attained.ttft), "tpot_s": spread_of(attained.tpot)}
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        shares = f"TTFT {kept['ttft']:.1%}, TPOT {kept['tpot']:.1%}"
        typer.echo(f"{setup.placement}: {kept['joint']:.1%} keep both targets ({shares})")


def _setup(profile: str, model: str, placement: str, policy: Any, link: float | None, hop_ms: float | None) -> Setup:
    loaded = options.load(profile)
    try:
        setup = Setup(
            profile=loaded,
            model=loaded.model(model),
            placement=parse_placement(placement),
            policy=policy,
            link_gigabytes_per_second=link,
            hop_seconds=None if hop_ms is None else hop_ms / 1000,
        )
        setup.check()
    except ValueError as error:
        raise Problem(str(error)) from error
    return setup


def _occupancy(outcome: Outcome) -> list[dict[str, float]]:
    """Once a second: who waits, who runs, how full the decode instances are."""
    first = len(outcome.prefills)
    blocks = sum(decode.capacity.blocks for decode in outcome.decodes)
    prefill_blocks = sum(prefill.capacity.blocks for prefill in outcome.prefills)
    return [
        {
            "time_s": time,
            "scheduler_queue": queued,
            "prefill_queue": sum(load.queued_requests for load in loads[:first]),
            "decode_running": sum(load.running for load in loads[first:]),
            "decode_kv": 1 - sum(load.free_blocks for load in loads[first:]) / blocks,
            "prefill_kv": 1 - sum(load.free_blocks for load in loads[:first]) / prefill_blocks if first else 0.0,
        }
        for time, queued, loads in outcome.samples
    ]


def _show(answer: dict[str, Any]) -> None:
    console = Console()
    kept = answer["attainment"]
    console.print(
        f"[bold]{answer['placement']}[/bold] ({answer['gpus']} GPUs), {answer['model']}, {answer['workload']}"
    )
    console.print(
        f"{answer['requests']} requests at {answer['rate']:.2f}/s: "
        f"[bold]{kept['joint']:.1%}[/bold] keep both targets (TTFT {kept['ttft']:.1%}, TPOT {kept['tpot']:.1%})"
    )
    times = Table("", "mean", "p50", "p90", "p99", title="milliseconds")
    for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        times.add_row(name, *(f"{1000 * value:.1f}" for value in answer[key].values()))
    stages = Table("stage", "mean ms", "share", title="where the time goes")
    for name, stage in answer["stages"].items():
        stages.add_row(name.replace("_", " "), f"{1000 * stage['mean_s']:.1f}", f"{stage['share']:.1%}")
    console.print(times)
    console.print(stages)
    for name, share in answer["utilisation"].items():
        console.print(f"{name.replace('_', ' ')}: {share:.0%}")
    if answer["refused"] or answer["preemptions"]:
        console.print(f"refused {answer['refused']}, preempted {answer['preemptions']} times")
