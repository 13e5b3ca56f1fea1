"""`./distserve` makes its environment. Tried in a copy of the checkout that needs no package: nothing is downloaded."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def start(root: Path, *arguments: str, path: str | None = None, cwd: Path = Path("/")) -> "subprocess.Popen[str]":
    environment = os.environ | {"PATH": path or os.environ["PATH"]}
    command = [root / "distserve", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=cwd
    )


def finished(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=50)
    return process.returncode, output


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose command line only says where it runs; no .venv yet."""
    root = tmp_path / "a checkout"
    for folder in ("cli", "tests", "services/one"):
        (root / folder).mkdir(parents=True)
        (root / folder / "requirements.txt").write_text("# nothing\n")
    shutil.copy(REPOSITORY / "distserve", root)
    shutil.copy(REPOSITORY / "cli" / "bootstrap.py", root / "cli")
    (root / "constraints.txt").write_text("# nothing\n")
    (root / "cli" / "__init__.py").touch()
    (root / "cli" / "__main__.py").write_text("import sys\nprint('started', sys.prefix, *sys.argv[1:])\n")
    return root


def test_two_first_starts_at_once_make_one_environment_and_later_starts_are_immediate(checkout: Path) -> None:
    pair = [start(checkout, "up"), start(checkout, "up")]
    outputs = [finished(process) for process in pair]
    assert [status for status, _ in outputs] == [0, 0]
    assert all(f"started {checkout / '.venv'} up" in output for _, output in outputs)
    assert sum("Making" in output for _, output in outputs) == 1
    assert sum("Another start" in output for _, output in outputs) == 1

    (checkout / "cli" / "bootstrap.py").write_text("raise SystemExit(9)\n")
    link = checkout.parent / "link"
    link.symlink_to(checkout / "distserve")
    elsewhere = checkout / "services"
    (elsewhere / "cli.py").write_text("raise SystemExit('not this one')\n")
    began = time.monotonic()
    again = subprocess.run([link, "a b", "--c"], capture_output=True, text=True, timeout=10, cwd=elsewhere, check=True)
    assert again.stdout == f"started {checkout / '.venv'} a b --c\n"
    assert time.monotonic() - began < 1.0

    (checkout / "cli" / "requirements.txt").write_text("# something else\n")
    assert finished(start(checkout, "up"))[0] == 9, "a changed requirement must be installed"


def test_a_half_made_environment_is_made_anew(checkout: Path) -> None:
    half_made = checkout / ".venv" / "bin"
    half_made.mkdir(parents=True)
    (half_made / "python").symlink_to("/nowhere/python3.11")
    (checkout / ".venv" / "left-over").touch()
    status, output = finished(start(checkout, "test"))
    assert (status, "Making" in output) == (0, True), output
    assert not (checkout / ".venv" / "left-over").exists()

    (checkout / ".venv" / "unfinished").touch()  # a start that was killed while pip worked
    (checkout / ".venv" / "development.stamp").unlink()
    status, output = finished(start(checkout, "test"))
    assert (status, "Making" in output) == (0, True), output
    assert not (checkout / ".venv" / "unfinished").exists()


@pytest.mark.parametrize(
    ("installed", "reported"), [("exit 1", "no python3"), ("echo Python 3.9.2; exit 1", "Python 3.9.2")]
)
def test_an_unsuitable_python_is_named_with_the_remedy(checkout: Path, installed: str, reported: str) -> None:
    tools = checkout / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "readlink", "cat", "sha256sum", "cut"):
        (tools / tool).symlink_to(shutil.which(tool) or "missing")
    (tools / "python3").write_text(f"#!/bin/sh\n{installed}\n")
    (tools / "python3").chmod(0o755)
    status, output = finished(start(checkout, "up", path=str(tools)))
    assert status != 0
    assert "needs Python 3.11, 3.12 or 3.13" in output
    assert reported in output
    assert "apt install" in output
    assert "Traceback" not in output


def test_a_failing_install_is_an_error_and_is_tried_again(checkout: Path) -> None:
    (checkout / "cli" / "requirements.txt").write_text("no-such-distribution-here @ file:///nowhere\n")
    status, output = finished(start(checkout, "up"))
    assert status == 1
    assert "Cannot make .venv: pip ended with status" in output
    (checkout / "cli" / "requirements.txt").write_text("# nothing\n")
    status, output = finished(start(checkout, "up"))
    assert (status, "Making" in output) == (0, False), output
