"""A file that cannot be written is complained of before the work that it was to hold."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.out_file import make_way, write
from cli.problems import Problem

LONG = {
    "profile": ["profile"],
    "plan": ["plan", "--model", "opt-13b"],
    "chaos": ["chaos"],
    "bench": ["bench", "--url", "http://127.0.0.1:1"],
    "bench goodput": ["bench", "goodput"],
}


@pytest.mark.parametrize("command", LONG)
def test_before_the_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("it has begun")

    for work in ("cli.profile.find_model", "cli.plan.make_plan", "cli.chaos.command.RunFolder.create"):
        monkeypatch.setattr(work, too_late)
    monkeypatch.setattr("cli.bench.server.find_server", too_late)
    monkeypatch.setattr("cli.bench.goodput_command._measured", too_late)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "answer.json", tmp_path):
        with pytest.raises(Problem, match=f"--out {out}: "):
            CliRunner().invoke(app, [*LONG[command], "--out", str(out)], catch_exceptions=False)


def test_its_folder_is_made(tmp_path: Path):
    file = tmp_path / "a" / "b" / "answer.json"
    make_way(file)
    write(file, "{}")
    make_way(file)  # again: it is written over
    assert file.read_text() == "{}"


def test_a_disk_that_has_gone_meanwhile_is_said_in_a_line(tmp_path: Path):
    with pytest.raises(Problem, match="No such file"):
        write(tmp_path / "gone" / "answer.json", "{}")
