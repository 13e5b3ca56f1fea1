"""The options of `./distserve bench`, beside those that it has in common with the simulator."""

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[
    str, typer.Option("--url", help="An OpenAI-compatible server.", show_default="the running `./distserve up`")
]
ModelName = Annotated[str, typer.Option("--model", help="One of the server's models.", show_default="its first")]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="DISTSERVE_API_KEY", help="If the server wants one.")]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", help="Model folder: prompts as text, for a server that takes no token ids.", show_default=False
    ),
]
Rate = Annotated[
    float | None,
    typer.Option("--rate", min=0, help="Requests per second; where --search begins.", show_default="as recorded, or 1"),
]
Rates = Annotated[str, typer.Option("--rates", metavar="A,B,C", help="Several rates, one after the other.")]
Search = Annotated[bool, typer.Option("--search", help="Find the highest rate that keeps the targets.")]
Tolerance = Annotated[float, typer.Option("--tolerance", min=0.01, max=1, help="Of --search, relative.")]
SloScale = Annotated[float, typer.Option("--slo-scale", min=0.001, help="Multiplies both targets.")]
ScaleLengths = Annotated[float, typer.Option("--scale-lengths", min=0.001, help="Multiplies all prompts and answers.")]
Warmup = Annotated[int, typer.Option("--warmup", min=0, help="So many requests come first and are not counted.")]
Requests = Annotated[int | None, typer.Option("--requests", min=1, help="At each rate.", show_default="100")]
Duration = Annotated[
    float | None, typer.Option("--duration", min=0.1, metavar="SECONDS", help="Instead of --requests.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="The JSON file; plots go beside it.", show_default=".distserve/bench/<time>.json"),
]
