"""`./distserve up`: a whole installation on this machine."""

import asyncio
import sys
from pathlib import Path
from typing import TextIO

import structlog
from rich.console import Console

from cli import up_options as options
from cli.preflight import DEMO, Model, find_model, free_port, visible_gpus
from cli.problems import Problem
from cli.run_folder import RunFolder
from cli.screen import Screen
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
    decode: options.Decode = 1,
    colocated: options.Colocated = False,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    max_model_len: options.MaxModelLen = None,
    kv_blocks: options.KvBlocks = None,
    api_key: options.ApiKey = "",
    shutdown_timeout: options.ShutdownTimeout = 10.0,
    log_dir: options.LogDir = None,
) -> None:
    """Serve a model on this machine: NATS, gateway, scheduler, prefill and decode instances, until Ctrl-C."""
    if colocated and prefill is not None:
        raise Problem("--colocated means no prefill instances: leave out --prefill")
    port = free_port(host, port)
    found = _find_model(model)
    stack = Stack(
        model=str(found.folder),
        served_name=served_model_name or found.name,
        prefill=0 if colocated else prefill or 1,
        decode=decode,
        colocated=colocated,
        host=host,
        port=port,
        device=device,
        dtype=dtype,
        drain_seconds=shutdown_timeout,
        threads=threads,
        api_keys=api_key,
        max_model_tokens=max_model_len,
        kv_blocks=kv_blocks,
    )
    gpus = visible_gpus() if device == "cuda" else []
    _serve(stack, found, gpus, log_dir)


def _find_model(wanted: str) -> Model:
    if wanted == DEMO and not (MODELS / wanted).exists():
        print("Making the demo model (first time only)", flush=True)
    return find_model(wanted, MODELS)


def _serve(stack: Stack, model: Model, gpus: list[str], log_dir: Path | None) -> None:
    screen = Screen(Console())
    screen.starting(stack, RANDOM_WEIGHTS if model.name == DEMO else "")
    instances = stack.prefill + stack.decode
    if gpus and len(gpus) < instances:
        screen.say(f"[yellow]{len(gpus)} GPU(s) for {instances} instances: some share one and its memory[/yellow]")
    folder = RunFolder.create(STATE / "run", log_dir.resolve() if log_dir else None)
    try:
        with (folder.logs / "supervisor.log").open("a") as log:
            _log_to(log)
            supervisor = Supervisor(stack, root=ROOT, folder=folder, screen=screen, gpus=gpus, chats=model.chats)
            ended_when_asked = asyncio.run(supervisor.run())
    finally:
        folder.close()
    sys.exit(0 if ended_when_asked else 1)


def _log_to(file: TextIO) -> None:
    """What the bus has to say is not for the terminal."""
    processors = [structlog.processors.TimeStamper(fmt="iso"), structlog.processors.add_log_level]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()], logger_factory=structlog.WriteLoggerFactory(file)
    )
