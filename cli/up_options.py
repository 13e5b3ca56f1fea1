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
Decode = Annotated[int | None, typer.Option(min=1, metavar="N", help="Decode instances.", show_default="1")]
Schedulers = Annotated[
    int, typer.Option(min=1, metavar="N", help="One leads; the others take over within 3 s when it dies.")
]
Colocated = Annotated[
    bool, typer.Option("--colocated", help="No prefill instances: the decode instances prefill as well.")
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", help="Instances, settings and targets from `plan --out FILE`.", show_default=False
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        envvar="DISTSERVE_PROFILE",
        metavar="NAME_OR_FILE",
        help="What `profile` measured here: with it the scheduler says when the traffic wants another layout.",
        show_default=False,
    ),
]
Replan = Annotated[
    bool, typer.Option("--replan", help="Change instances as it says. Needs --profile, --slo-ttft and --slo-tpot.")
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
Quantization = Annotated[
    Literal["none", "int8"],
    typer.Option(
        envvar="DISTSERVE_QUANTIZATION",
        help="int8: faster on a CPU, and answers change a little; only there.",
        show_default="none",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        envvar="DISTSERVE_THREADS", min=1, metavar="N", help="Of each engine.", show_default="cores / instances"
    ),
]
Pin = Annotated[bool, typer.Option("--pin", help="Each engine computes on CPU cores of its own.")]
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
Admission = Annotated[
    Literal["queue", "slo"],
    typer.Option(
        envvar="DISTSERVE_ADMISSION", help="Refuse when the queue is full; slo: also what would miss --slo-ttft."
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
SloTtft = Annotated[
    float | None,
    typer.Option(
        "--slo-ttft", min=0.001, metavar="SECONDS", help="Target for the time to first token.", show_default="none"
    ),
]
SloTpot = Annotated[
    float | None,
    typer.Option(
        "--slo-tpot", min=0.0001, metavar="SECONDS", help="Target for each further token.", show_default="none"
    ),
]
LogDir = Annotated[
    Path | None, typer.Option(help="Folder for the log files.", show_default=".distserve/run/<this run>/logs")
]
