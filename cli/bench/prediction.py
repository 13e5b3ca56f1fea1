"""What the simulator says about the same experiment, from a profile of this machine."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cli.bench.shapes import Shape
from cli.problems import Problem
from cli.run_folder import RUNS
from services.scheduler.planner.goodput import Promise, goodput
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import Profile, load_profile
from services.scheduler.simulator.simulation import Policy, Setup
from services.scheduler.simulator.workload import Trace

PROFILE_SECONDS = 600.0
MOST_TOKENS = "2048"
LIVE = Policy(batch_tokens=512, max_batch=64)  # what the instances do unless told otherwise


def measured_profile(model: str, device: str, dtype: str, threads: int, file: Path) -> Profile:
    """`./distserve profile` into `file`, with as many threads as a device has cores; what it prints is shown."""
    options = ("--model", model, "--device", device, "--dtype", dtype, "--threads", str(threads))
    command = [sys.executable, "-m", "cli", "profile", *options, "--most-tokens", MOST_TOKENS, "--out", str(file)]
    try:
        done = subprocess.run(command, cwd=RUNS.parents[1], timeout=PROFILE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Problem(f"./distserve profile took more than {PROFILE_SECONDS:g} s") from error
    if done.returncode:
        raise Problem("./distserve profile failed; --profile takes one that was written before")
    return load_profile(str(file))


def predicted(profile: Profile, shape: Shape, traces: Sequence[Trace], promise: Promise) -> float:
    """Requests per second of the whole shape, a mean over the traces."""
    placement = parse_placement(shape.placement)
    try:
        setup = Setup(profile=profile, model=profile.model(""), placement=placement, policy=LIVE)
        return goodput(setup, traces, promise, seeds=len(traces), tolerance=0.01, least=len(traces[0])).rate
    except ValueError as error:
        raise Problem(str(error)) from error
