"""The file that a command's answer goes to."""

import os
from pathlib import Path

from cli.problems import Problem


def make_way(file: Path) -> None:
    """Make its folder. Problem if it cannot be written: before the work that the answer takes, not after it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _problem(file, error) from error
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise Problem(f"--out {file}: {'is a folder' if file.is_dir() else 'cannot be written'}")


def write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except OSError as error:
        raise _problem(file, error) from error


def _problem(file: Path, error: OSError) -> Problem:
    return Problem(f"--out {file}: {error.strerror}")
