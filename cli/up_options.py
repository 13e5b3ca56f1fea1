"""The options of `./distserve up`. Those that are a service's setting can be given as its environment variable too."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    str,
    typer.Option(
        envvar="DISTSERVE_MODEL", metavar="MODEL", help="A model folder, a Hugging Face hub id (owner/name), or `demo`."
    ),
]
ServedModelName = Annotated[
    str, typer.Option(envvar="DISTSERVE_SERVED_MODEL_NAME", help="The name clients use.", show_default="from --model")
]
Prefill = Annotated[int | None, typer.Option(min=1, metavar="N", help="Prefill instances.", show_default="1")]
Decode = Annotated[int, typer.Option(min=1, metavar="N", help="Decode instances.")]
Colocated = Annotated[
    bool, typer.Option("--colocated", help="No prefill instances: the decode instances prefill as well.")
]
Host = Annotated[str, typer.Option(envvar="DISTSERVE_HOST", help="Address of the gateway.")]
Port = Annotated[
    int,
    typer.Option(envvar="DISTSERVE_PORT", min=0, max=65535, metavar="N", help="Port of the gateway; 0: any free one."),
]
Device = Annotated[
    Literal["cpu", "cuda"],
    typer.Option(envvar="DISTSERVE_DEVICE", help="With cuda each instance gets one GPU in turn."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(envvar="DISTSERVE_DTYPE", help="Of weights and cache; auto: float32, on cuda bfloat16."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="DISTSERVE_THREADS", min=1, metavar="N", help="Of each engine.", show_default="cores / instances"
    ),
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        envvar="DISTSERVE_MAX_MODEL_TOKENS", min=1, metavar="N", help="Longest sequence.", show_default="the model's"
    ),
]
KvBlocks = Annotated[
    int | None,
    typer.Option(
        envvar="DISTSERVE_KV_BLOCKS", min=1, metavar="N", help="KV blocks of each instance.", show_default="by memory"
    ),
]
ApiKey = Annotated[
    str, typer.Option(envvar="DISTSERVE_API_KEYS", help="Clients must send it; several: comma separated.")
]
ShutdownTimeout = Annotated[
    float,
    typer.Option(
        envvar="DISTSERVE_DRAIN_TIMEOUT", min=0, metavar="SECONDS", help="How long running answers may take at the end."
    ),
]
LogDir = Annotated[
    Path | None, typer.Option(help="Folder for the log files.", show_default=".distserve/run/<this run>/logs")
]
