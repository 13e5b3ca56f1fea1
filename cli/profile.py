"""`./distserve profile`: how long this machine takes, in the form that the simulator reads."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from rich.progress import Progress

from cli import out_file
from cli.preflight import DEMO, Model, find_model
from cli.simulation_options import Plot
from cli.up import MODELS
from cli.up_options import Device, Dtype
from cli.up_options import Model as ModelOption

if TYPE_CHECKING:
    from cli.profiling.wire import Wire
    from shared.engine.step import Engine

Out = Annotated[Path, typer.Option("--out", help="Where the profile goes.")]
MostTokens = Annotated[int, typer.Option("--most-tokens", min=64, help="Tokens of the largest batch that is timed.")]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Of the engine; 0: one per core.")]
Link = Annotated[
    float | None, typer.Option("--link", min=0.001, help="GB/s between instances.", show_default="measured")
]
Hop = Annotated[
    float | None, typer.Option("--hop-ms", min=0, help="One hop of the control plane.", show_default="measured")
]


def profile(
    model: ModelOption = DEMO,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    most_tokens: MostTokens = 4096,
    link: Link = None,
    hop_ms: Hop = None,
    out: Out = Path("profile.json"),
    plot: Plot = None,
) -> None:
    """Time prefill, decoding, KV transfers and the bus on this machine, fit the latency model, write a profile."""
    from cli.profiling.engine_times import BATCHES
    from shared.engine.settings import EngineSettings
    from shared.engine.step import Engine

    out_file.make_way(out)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # what the bus has to say is not for here
    found = find_model(model, MODELS)
    settings = EngineSettings(
        model=str(found.folder), device=device, dtype=dtype, threads=threads, decode_batch=max(BATCHES)
    )
    engine = Engine.load(settings)
    engine.use_threads()
    data = _measured(found, engine, device, most_tokens, link, hop_ms)
    out_file.write(out, json.dumps(data, indent=1) + "\n")
    _show(data, found.name)
    typer.echo(f"wrote {out}")
    if plot is not None:
        from cli.profiling.plot import plot_profile

        plot_profile(data, plot)
        typer.echo(f"wrote {plot}")


def _measured(
    found: Model, engine: "Engine", device: str, most_tokens: int, link: float | None, hop_ms: float | None
) -> dict[str, Any]:
    from cli.profiling import wire
    from cli.profiling.document import document, with_given, with_wire
    from cli.profiling.engine_times import decode_points, grid, prefill_points

    block_bytes = engine.cache.block_bytes
    points, lines = len(grid(engine, most_tokens)), len(wire.sizes(block_bytes)) + 1
    told = link is not None and hop_ms is not None
    timed: Wire | None = None
    with Progress(transient=True) as progress:
        task = progress.add_task("Timing prefill", total=2 * points + (0 if told else lines))
        prefill = list(prefill_points(engine, most_tokens, lambda: progress.advance(task)))
        progress.update(task, description="Timing decode steps")
        decode = list(decode_points(engine, most_tokens, lambda: progress.advance(task)))
        if not told:
            progress.update(task, description="Moving KV between two processes")
            timed = wire.measure(block_bytes, device, lambda: progress.advance(task))
    data = document(found.name, found.folder, engine, device, prefill, decode)
    if timed is None:
        assert link is not None
        assert hop_ms is not None
        return with_given(data, link, hop_ms)
    data = with_wire(data, timed)
    return with_given(
        data, link or data["device"]["link_gigabytes_per_second"], data["hop_ms"] if hop_ms is None else hop_ms
    )


def _show(data: dict[str, Any], name: str) -> None:
    fits = data["models"][name]["fit"] | ({"transfer": data["transfer"]["fit"]} if "transfer" in data else {})
    for what, points in fits.items():
        relative = [abs(point["error"]) for point in points]
        mean, largest = sum(relative) / len(relative), max(relative)
        typer.echo(f"{what}: {len(relative)} points, error of the fit {mean:.1%} (largest {largest:.1%})")
    transport = f"{data['transfer']['transport']}, " if "transfer" in data else ""
    typer.echo(
        f"L_m {data['models'][name]['L_m']} tokens; KV moves over {transport}"
        f"{data.get('transfer_setup_ms', 0.0):.2f} ms + {data['device']['link_gigabytes_per_second']:.2f} GB/s; "
        f"a hop takes {data['hop_ms']:.2f} ms"
    )
