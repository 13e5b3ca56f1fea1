"""Where the metrics of each part of a run can be read: a port for each, and a file that tells Prometheus."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cli.stack import Part

PORT = "DISTSERVE_METRICS_PORT"


def with_metrics_ports(parts: Sequence[Part], ports: Sequence[int]) -> list[Part]:
    here = {"DISTSERVE_METRICS_HOST": "127.0.0.1"}
    return [
        replace(part, environment={**part.environment, **here, PORT: str(port)})
        for part, port in zip(parts, ports, strict=True)
    ]


def write_targets(parts: Sequence[Part], file: Path) -> None:
    """One line of it for each part: its address, its role as the job, its name."""
    targets = [
        {"targets": [f"127.0.0.1:{part.environment[PORT]}"], "labels": {"job": part.role, "part": part.name}}
        for part in parts
    ]
    file.write_text(json.dumps(targets, indent=1) + "\n")
