"""`./distserve test` and `./distserve check`: what CI runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "lint": ("-m", "ruff", "check", "."),
    "format": ("-m", "ruff", "format", "--check", "."),
    "types": ("-m", "pyright", "--pythonpath", sys.executable),
    "import rules": ("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"),
}


SIDE_BY_SIDE = (f"--numprocesses={min(4, os.cpu_count() or 1)}", "--dist=loadgroup")  # groups: tests/conftest.py


def run_tests(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PYTEST ARGUMENT]", help="For example tests/unit, or -k bootstrap."),
    ] = None,
) -> None:
    """Run the tests: all of them side by side, or what pytest is told."""
    os.chdir(ROOT)
    told = arguments or []
    names_some = any(Path(argument.partition("::")[0]).exists() for argument in told)
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *([] if names_some else SIDE_BY_SIDE), *told])


def run_checks() -> None:
    """Lint, format, types and import rules, all of them even if one fails."""
    console = Console()
    failed = []
    for name, command in CHECKS.items():
        console.rule(name, align="left")
        if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    if failed:
        console.print(f"[red]Failed: {', '.join(failed)}[/red]")
        raise typer.Exit(1)
    console.print("[green]Everything is in order.[/green]")
