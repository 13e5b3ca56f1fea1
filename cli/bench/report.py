"""A bench's JSON file: written with every request, read back for a comparison."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cli import out_file
from cli.bench.measure import Measured
from cli.bench.server import Server
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.workload import Trace

FORMAT = 1


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "aiohttp": version("aiohttp"),
    }


def report(
    *,
    server: Server,
    trace: Trace,
    settings: Mapping[str, Any],
    promise: Promise,
    done: Sequence[Measured],
    stages: Sequence[dict[str, float]],
) -> dict[str, Any]:
    """`settings`: what was chosen. `stages`: of each of `done`; mean seconds of a request by stage, if known."""
    return {
        "format": FORMAT,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "server": server.about(),
        "workload": {
            "name": trace.name,
            "requests": len(trace),
            "mean_input": sum(trace.inputs) / len(trace),
            "mean_output": sum(trace.outputs) / len(trace),
            **settings,
        },
        "promise": {"ttft_s": promise.ttft, "tpot_s": promise.tpot, "share": promise.share},
        "runs": [run_of(measured, found) for measured, found in zip(done, stages, strict=True)],
    }


def run_of(measured: Measured, stages: dict[str, float]) -> dict[str, Any]:
    return {
        "rate": measured.rate,
        "valid": measured.verdict.valid,
        "why_not": measured.verdict.reasons,
        "stopped": measured.run.stopped,
        "kept": measured.kept,
        "started_at": measured.run.started_at,
        "generator": measured.generator,
        **measured.summary,
        "stages_s": stages,
        "answers": [answer.to_json() for answer in measured.run.counted],
    }


def write(file: Path, content: Mapping[str, Any]) -> None:
    out_file.make_way(file)
    out_file.write(file, json.dumps(content, separators=(",", ":")) + "\n")


def read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"runs", "shapes"} & content.keys():
        raise Problem(f"{file} was not written by ./distserve bench")
    return content


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
