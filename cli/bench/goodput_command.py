"""`./distserve bench goodput`: colocated against every split of the same devices, measured and predicted."""

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli import out_file
from cli import simulation_options as shared_options
from cli.bench import options
from cli.bench.shapes import shapes_of
from cli.preflight import DEMO
from cli.problems import Problem
from cli.run_folder import RUNS
from cli.stack import core_shares
from cli.up_options import Device, Dtype
from cli.up_options import Model as ModelOption
from services.scheduler.planner.goodput import Promise

if TYPE_CHECKING:
    from services.scheduler.simulator.profile import Profile

Devices = Annotated[int, typer.Option("--devices", min=1, help="Equal shares of the CPU cores, or GPUs.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, max=9, help="Each with a trace of its own, for an interval.")]
Requests = Annotated[int, typer.Option("--requests", min=10, help="At each rate.")]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="What `profile` wrote here.", show_default="measured first")
]
Rate = Annotated[
    float, typer.Option("--rate", min=0, help="Where the search begins.", show_default="as the simulator says")
]


def goodput(
    model: ModelOption = DEMO,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    devices: Devices = 2,
    workload: shared_options.Workload = "chatbot",
    trace: shared_options.TraceFile = None,
    scale_lengths: options.ScaleLengths = 1.0,
    slo_ttft: shared_options.SloTtft = 0.25,
    slo_tpot: shared_options.SloTpot = 0.1,
    slo_scale: options.SloScale = 1.0,
    target: shared_options.Share = 0.9,
    requests: Requests = 100,
    rounds: Rounds = 3,
    warmup: options.Warmup = 5,
    rate: Rate = 0.0,
    tolerance: options.Tolerance = 0.05,
    cv: shared_options.Cv = None,
    seed: shared_options.Seed = 0,
    profile: ProfileFile = None,
    out: options.Out = None,
) -> None:
    """Measure goodput per device, colocated and for every split into prefill and decode, beside the prediction."""
    from cli.bench.experiment import Experiment
    from cli.bench.goodput_report import GoodputReport
    from cli.bench.prediction import predicted
    from cli.bench.screen import Screen
    from services.scheduler.simulator.profile import load_profile

    result = out or RUNS.parent / "bench" / f"{time.strftime('%Y%m%d-%H%M%S')}-goodput.json"
    out_file.make_way(result)
    try:
        promise = Promise(ttft=slo_ttft * slo_scale, tpot=slo_tpot * slo_scale, share=target)
        count, file = requests + warmup, shared_options.trace_path(trace, workload)
        draws = shared_options.draws_at_unit_rate(file, workload, count, seed, cv, rounds)
        traces = [draw.scaled(scale_lengths) for draw in draws]
        cores = len(core_shares(sorted(os.sched_getaffinity(0)), devices)[0])
        loaded = load_profile(str(profile)) if profile is not None else _measured(model, device, dtype, cores)
    except ValueError as error:
        raise Problem(str(error)) from error
    shapes = shapes_of(devices)
    predictions = {shape: predicted(loaded, shape, traces, promise) for shape in shapes}
    settings = {
        **{"model": model, "device": device, "dtype": dtype, "devices": devices, "cores_of_a_device": cores},
        **{"scale_lengths": scale_lengths, "cv": cv, "seed": seed, "warmup": warmup, "tolerance": tolerance},
    }
    console = Console()
    title = f"{model} on {devices} devices, {traces[0].name}, TTFT {promise.ttft:g} s, TPOT {promise.tpot:g} s"
    with Screen(console, title, promise) as screen:
        experiment = Experiment(_up_options(model, device, dtype, promise), traces, warmup, promise, tolerance, screen)
        report = GoodputReport(experiment, predictions, loaded, settings)
        for _ in experiment.rounds(shapes, [rate or predictions[shape] or 1.0 for shape in shapes]):
            report.write(result)  # what there is, should a later round fail
    report.show(console)
    console.print(f"Wrote {result}")
    reasons = report.reasons()
    if reasons:
        raise Problem("not valid: " + "; ".join(reasons))


def _up_options(model: str, device: str, dtype: str, promise: Promise) -> list[str]:
    pinned = ["--pin"] if device == "cpu" else []
    patience = ["--slo-ttft", f"{max(promise.ttft, 0.001):g}"]  # its queue may be as long
    return ["--model", model, "--device", device, "--dtype", dtype, *pinned, *patience]


def _measured(model: str, device: str, dtype: str, cores: int) -> "Profile":
    from cli.bench.prediction import measured_profile

    with tempfile.TemporaryDirectory() as folder:
        return measured_profile(model, device, dtype, cores, Path(folder) / "profile.json")
