"""What the doctor says."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    topic: str
    status: Status
    fact: str
    remedy: str = ""  # what to do; "" when ok


def ok(topic: str, fact: str) -> Finding:
    return Finding(topic, "ok", fact)


def warning(topic: str, fact: str, remedy: str) -> Finding:
    return Finding(topic, "warning", fact, remedy)


def problem(topic: str, fact: str, remedy: str) -> Finding:
    return Finding(topic, "problem", fact, remedy)


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """1 if there is a problem, or with `strict` a warning; else 0."""
    bad = {"problem", "warning"} if strict else {"problem"}
    return int(any(finding.status in bad for finding in findings))
