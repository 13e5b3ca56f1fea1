"""`./distserve profile`: how long this machine's engine takes, in the form that the simulator reads."""

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from cli.preflight import DEMO, find_model
from cli.up import MODELS
from cli.up_options import Device, Dtype, Model
from services.scheduler.simulator.fitting import fit

if TYPE_CHECKING:
    from cli.measurement import Point
    from shared.engine.step import Engine

Out = Annotated[Path, typer.Option("--out", help="Where the profile goes.")]
MostTokens = Annotated[int, typer.Option("--most-tokens", min=64, help="Tokens of the largest batch that is timed.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Of the engine; 0: one per core.")]
Link = Annotated[
    float, typer.Option("--link", min=0.001, help="GB/s between instances; the transport's self-test says.")
]
Hop = Annotated[float, typer.Option("--hop-ms", min=0, help="One hop of the control plane.")]


def profile(
    model: Model = DEMO,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    most_tokens: MostTokens = 4096,
    link: Link = 1.0,
    hop_ms: Hop = 0.5,
    out: Out = Path("profile.json"),
) -> None:
    """Time prefill and decoding over batch sizes and lengths, fit the latency model, write a profile."""
    from cli.measurement import decode_points, grid, prefill_points
    from shared.engine.settings import EngineSettings
    from shared.engine.step import Engine

    found = find_model(model, MODELS)
    engine = Engine.load(EngineSettings(model=str(found.folder), device=device, dtype=dtype, threads=threads))
    engine.use_threads()
    with Progress(transient=True) as progress:
        task = progress.add_task("Timing the engine", total=2 * len(grid(engine, most_tokens)))
        prefill = list(prefill_points(engine, most_tokens, lambda: progress.advance(task)))
        decode = list(decode_points(engine, most_tokens, lambda: progress.advance(task)))
    data = _profile(found.name, engine, device, prefill, decode)
    data["hop_ms"], data["device"]["link_gigabytes_per_second"] = hop_ms, link
    out.write_text(json.dumps(data, indent=1) + "\n")
    errors = data["models"][found.name]["fit"]
    for phase in ("prefill", "decode"):
        relative = [abs(point["error"]) for point in errors[phase]]
        typer.echo(
            f"{phase}: {len(relative)} points, error of the fit {_mean(relative):.1%} (largest {max(relative):.1%})"
        )
    typer.echo(f"wrote {out}")


def _profile(name: str, engine: "Engine", device: str, prefill: "list[Point]", decode: "list[Point]") -> dict[str, Any]:
    spec = engine.spec
    prefill_rows = [(p.batch * p.length, p.batch * p.length**2) for p in prefill]
    decode_rows = [(p.batch * (p.length + 1), p.batch) for p in decode]
    first, first_errors = fit(prefill_rows, [p.milliseconds for p in prefill])
    step, step_errors = fit(decode_rows, [p.milliseconds for p in decode])
    block_bytes = engine.cache.block_bytes
    kv_bytes = block_bytes // engine.block_tokens
    weights = 12 * spec.layers * spec.hidden_size**2 * 2  # of a plain decoder: for the planner's memory test only
    return {
        "format": 1,
        "name": f"{name}-{device}",
        "source": f"measured with this project's engine on {platform.machine()}, {device}, {engine.kv_format}",
        "licence": "none claimed",
        "device": {"name": device, "memory_bytes": 2 * (weights + engine.blocks * block_bytes)},
        "models": {
            name: {
                "layers": spec.layers,
                "hidden": spec.hidden_size,
                "weight_bytes": weights,
                "kv_bytes_per_token": kv_bytes,
                "max_tokens": engine.max_model_tokens,
                "parallel": {
                    "1": {
                        "prefill_ms": first,
                        "decode_small_ms": step,
                        "decode_large_ms": step,
                        "large_batch": 1 << 20,
                    }
                },
                "kv_tokens": {"1,1": engine.blocks * engine.block_tokens},
                "fit": {
                    "prefill": _points(prefill, first_errors),
                    "decode": _points(decode, step_errors),
                },
            }
        },
    }


def _points(points: "list[Point]", errors: list[float]) -> list[dict[str, float]]:
    return [
        {"batch": p.batch, "length": p.length, "milliseconds": p.milliseconds, "error": error}
        for p, error in zip(points, errors, strict=True)
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
