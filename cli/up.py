"""`./distserve up`: a whole installation on this machine."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Literal, TextIO

import structlog
import typer
from rich.console import Console

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

Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def up(
    model: Annotated[
        str,
        typer.Option(
            envvar="DISTSERVE_MODEL",
            metavar="MODEL",
            help="A model folder, a Hugging Face hub id (owner/name), or `demo`.",
        ),
    ] = DEMO,
    served_model_name: Annotated[
        str,
        typer.Option(envvar="DISTSERVE_SERVED_MODEL_NAME", help="The name clients use.", show_default="from --model"),
    ] = "",
    prefill: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prefill instances.", show_default="1")
    ] = None,
    decode: Annotated[int, typer.Option(min=1, metavar="N", help="Decode instances.")] = 1,
    colocated: Annotated[
        bool, typer.Option("--colocated", help="No prefill instances: the decode instances prefill as well.")
    ] = False,
    host: Annotated[str, typer.Option(envvar="DISTSERVE_HOST", help="Address of the gateway.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="DISTSERVE_PORT", min=0, max=65535, metavar="N", help="Port of the gateway; 0: any free one."
        ),
    ] = 8000,
    device: Annotated[
        Device, typer.Option(envvar="DISTSERVE_DEVICE", help="With cuda each instance gets one GPU in turn.")
    ] = "cpu",
    dtype: Annotated[
        Dtype, typer.Option(envvar="DISTSERVE_DTYPE", help="Of weights and cache; auto: float32, on cuda bfloat16.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            envvar="DISTSERVE_THREADS", min=1, metavar="N", help="Of each engine.", show_default="cores / instances"
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            envvar="DISTSERVE_MAX_MODEL_TOKENS",
            min=1,
            metavar="N",
            help="Longest sequence.",
            show_default="the model's",
        ),
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option(
            envvar="DISTSERVE_KV_BLOCKS",
            min=1,
            metavar="N",
            help="KV blocks of each instance.",
            show_default="by memory",
        ),
    ] = None,
    api_key: Annotated[
        str, typer.Option(envvar="DISTSERVE_API_KEYS", help="Clients must send it; several: comma separated.")
    ] = "",
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            envvar="DISTSERVE_DRAIN_TIMEOUT",
            min=0,
            metavar="SECONDS",
            help="Seconds that running answers have at the end.",
        ),
    ] = 10.0,
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for the log files.", show_default=".distserve/run/<this run>/logs")
    ] = None,
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
