"""`./distserve trace`: where the time of a request went."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import trace_screen
from cli.problems import Problem
from cli.run_folder import RUNS, newest_with
from shared.telemetry import trace_reader, traces
from shared.telemetry.trace_reader import Span
from shared.telemetry.waterfall import Waterfall, waterfalls

POLL_SECONDS = 0.1

RequestId = Annotated[
    str, typer.Argument(metavar="[REQUEST_ID]", help="The answer's id, its x-request-id, or its trace id.")
]
Last = Annotated[int, typer.Option("--last", min=0, metavar="N", help="Instead: the last N requests, in short.")]
Slowest = Annotated[int, typer.Option("--slowest", min=0, metavar="N", help="Instead: the N that took longest.")]
Ttft = Annotated[
    float | None,
    typer.Option("--slo-ttft", metavar="SECONDS", help="To the first token.", show_default="what the request had"),
]
Tpot = Annotated[
    float | None,
    typer.Option("--slo-tpot", metavar="SECONDS", help="For each further token.", show_default="what the request had"),
]
Traces = Annotated[
    Path | None,
    typer.Option(
        envvar="DISTSERVE_TRACE_DIR", help="Folder of the trace files.", show_default="of the running or latest `up`"
    ),
]


def trace(
    request_id: RequestId = "",
    last: Last = 0,
    slowest: Slowest = 0,
    slo_ttft: Ttft = None,
    slo_tpot: Tpot = None,
    folder: Traces = None,
) -> None:
    """Show a request's waterfall: its stages, the gaps between them, its KV transfer, and what used up its targets."""
    if sum((bool(request_id), last > 0, slowest > 0)) != 1:
        raise Problem("name one request, or use --last N or --slowest N")
    if not all(target is None or target > 0 for target in (slo_ttft, slo_tpot)):
        raise Problem("a target must be more than 0 s")
    folder = folder or newest_with("traces", RUNS)
    if folder is None or not folder.is_dir():
        raise Problem("there are no traces: start `./distserve up` and send it a request")
    console = Console()
    if request_id:
        for waterfall in _of_request(folder, request_id):
            trace_screen.show(console, waterfall, slo_ttft, slo_tpot)
    else:
        found = _all(folder)
        if not found:
            raise Problem(f"no request has ended yet, as far as {folder} tells")
        by_end = sorted(found, key=lambda one: one.started_ns / 1e9 + one.seconds)
        by_length = sorted(found, key=lambda one: -one.seconds)
        trace_screen.show_list(console, by_end[-last:] if last else by_length[:slowest])


def _of_request(folder: Path, request_id: str) -> list[Waterfall]:
    """Its services write what they recorded about once a second: a request that has just ended is waited for."""
    deadline = time.monotonic() + traces.SETTLE_SECONDS
    while not (calls := _calls_known_as(folder, request_id)):
        if time.monotonic() >= deadline:
            raise Problem(
                f"no request is known as {request_id!r} in {folder}. A request appears there when it has ended; "
                "`./distserve trace --last 10` lists the latest ones"
            )
        time.sleep(POLL_SECONDS)
    settled_at = max(call.end_ns for call in calls) / 1e9 + traces.SETTLE_SECONDS
    time.sleep(max(0.0, min(traces.SETTLE_SECONDS, settled_at - time.time())))
    spans = trace_reader.spans_in(folder, {call.trace for call in calls})
    found = [one for call in calls for one in waterfalls(call, spans[call.trace])]
    return [one for one in found if one.request == request_id.partition("cmpl-")[2]] or found


def _calls_known_as(folder: Path, request_id: str) -> list[Span]:
    return [call for call in trace_reader.calls_in(folder) if trace_reader.answers_to(call, request_id)]


def _all(folder: Path) -> list[Waterfall]:
    calls = trace_reader.calls_in(folder)
    spans = trace_reader.spans_in(folder, {call.trace for call in calls})
    return [one for call in calls for one in waterfalls(call, spans[call.trace])]
