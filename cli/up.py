"""`./distserve up`: a whole installation on this machine."""

import asyncio
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import structlog
from rich.console import Console

from cli import up_options as options
from cli.held_ports import hold_port, number_of
from cli.plan_file import StartingPlan, read_plan
from cli.preflight import DEMO, Model, find_model, visible_gpus
from cli.problems import Problem
from cli.run_folder import RunFolder
from cli.screen import Screen
from cli.simulation_options import load
from cli.stack import Stack
from cli.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".distserve"
MODELS = STATE / "models"
RANDOM_WEIGHTS = "The demo model has random weights: it shows the system at work, what it says is word salad."


def up(
    model: options.Model = DEMO,
    served_model_name: options.ServedModelName = "",
    prefill: options.Prefill = None,
    decode: options.Decode = None,
    schedulers: options.Schedulers = 1,
    colocated: options.Colocated = False,
    plan: options.PlanFile = None,
    profile: options.Profile = "",
    replan: options.Replan = False,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = "none",
    threads: options.Threads = None,
    pin: options.Pin = False,
    max_model_len: options.MaxModelLen = None,
    kv_blocks: options.KvBlocks = None,
    api_key: options.ApiKey = "",
    slo_ttft: options.SloTtft = None,
    slo_tpot: options.SloTpot = None,
    admission: options.Admission = "queue",
    shutdown_timeout: options.ShutdownTimeout = 10.0,
    log_dir: options.LogDir = None,
) -> None:
    """Serve a model on this machine: NATS, gateway, scheduler, prefill and decode instances, until Ctrl-C."""
    if quantization != "none" and device != "cpu":
        raise Problem(f"--quantization {quantization} works on a CPU only: leave it out, or take --device cpu")
    start = _with_targets(_starting_plan(prefill, decode, colocated, plan), slo_ttft, slo_tpot)
    _check_replanning(start, profile, replan)
    held = hold_port(host, port)
    found = _find_model(model, max_model_len)
    stack = Stack(
        model=str(found.folder),
        served_name=served_model_name or found.name,
        prefill=start.prefill,
        decode=start.decode,
        schedulers=schedulers,
        colocated=not start.prefill,
        host=host,
        port=number_of(held),
        device=device,
        dtype=dtype,
        quantization=quantization,
        drain_seconds=shutdown_timeout,
        threads=threads,
        pinned=pin,
        api_keys=api_key,
        max_model_tokens=max_model_len,
        kv_blocks=kv_blocks,
        slo_ttft_seconds=start.ttft_seconds,
        slo_tpot_seconds=start.tpot_seconds,
        engine_settings=start.settings,
        profile=str(Path(profile).resolve()) if Path(profile).is_file() else profile,
        replan=replan,
        admission=admission,
    )
    _serve(stack, held, found, visible_gpus() if device == "cuda" else [], log_dir)


def _starting_plan(prefill: int | None, decode: int | None, colocated: bool, plan: Path | None) -> StartingPlan:
    if colocated and prefill is not None:
        raise Problem("--colocated means no prefill instances: leave out --prefill")
    if plan is None:
        count = 0 if colocated else prefill or 1
        return StartingPlan(prefill=count, decode=decode or 1, settings={}, ttft_seconds=None, tpot_seconds=None)
    if colocated or prefill is not None or decode is not None:
        raise Problem("--plan says how many instances there are: leave out --prefill, --decode and --colocated")
    return read_plan(plan)


def _with_targets(start: StartingPlan, ttft_seconds: float | None, tpot_seconds: float | None) -> StartingPlan:
    """Those asked for, else the plan's."""
    return replace(
        start,
        ttft_seconds=start.ttft_seconds if ttft_seconds is None else ttft_seconds,
        tpot_seconds=start.tpot_seconds if tpot_seconds is None else tpot_seconds,
    )


def _check_replanning(start: StartingPlan, profile: str, replan: bool) -> None:
    if replan and not profile:
        raise Problem("--replan needs --profile: ./distserve profile makes one of this machine")
    if not profile:
        return
    given = {"--slo-ttft": start.ttft_seconds, "--slo-tpot": start.tpot_seconds}
    missing = [name for name, seconds in given.items() if seconds is None]
    if missing:
        raise Problem(f"--profile is for replanning, and that needs targets: give {' and '.join(missing)}")
    load(profile)
    if replan and (not start.prefill or start.prefill + start.decode < 3):
        raise Problem("--replan shifts instances between prefill and decoding: it needs at least three, not colocated")


def _find_model(wanted: str, most_tokens: int | None) -> Model:
    if wanted == DEMO and not (MODELS / wanted).exists():
        print("Making the demo model (first time only)", flush=True)
    found = find_model(wanted, MODELS)
    found.check_length(most_tokens)
    return found


def _serve(stack: Stack, held: socket.socket, model: Model, gpus: list[str], log_dir: Path | None) -> None:
    screen = Screen(Console())
    screen.starting(stack, RANDOM_WEIGHTS if model.name == DEMO else "")
    instances = stack.prefill + stack.decode
    if gpus and len(gpus) < instances:
        screen.say(f"[yellow]{len(gpus)} GPU(s) for {instances} instances: some share one and its memory[/yellow]")
    folder = RunFolder.create(STATE / "run", log_dir.resolve() if log_dir else None)
    try:
        with held, (folder.logs / "supervisor.log").open("a") as log:
            log_to(log)
            supervisor = Supervisor(stack, root=ROOT, folder=folder, screen=screen, gpus=gpus, chats=model.chats)
            ended_when_asked = asyncio.run(supervisor.run())
    finally:
        folder.close()
    sys.exit(0 if ended_when_asked else 1)


class _Lines(structlog.WriteLogger):
    """A full disk must not stop the supervisor in the middle of what it was about to log."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = exception = msg


def log_to(file: TextIO) -> None:
    """What the bus has to say is not for the terminal."""
    processors = [structlog.processors.TimeStamper(fmt="iso"), structlog.processors.add_log_level]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()], logger_factory=lambda *_: _Lines(file)
    )
