"""`trace` as it is typed."""

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.problems import Problem
from tests.unit.cli.test_trace_screen import WATERFALL


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request, whose first token took 50 ms, each further one 10 ms, and that had targets of its own."""
    call = replace(WATERFALL, ttft_target_seconds=0.02, tpot_target_seconds=0.02)
    monkeypatch.setattr("cli.trace._of_request", lambda folder, request_id: [call])


def trace(*options: str, folder: Path) -> str:
    done = CliRunner().invoke(app, ["trace", "mine", "--folder", str(folder), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_targets_are_those_that_the_request_had(tmp_path: Path):
    assert "TTFT 50.00 of 20.00 ms: missed" in trace(folder=tmp_path)


def test_targets_are_seconds_as_for_every_other_command(tmp_path: Path):
    said = trace("--slo-ttft", "0.25", "--slo-tpot", "0.005", folder=tmp_path)
    assert "TTFT 50.00 of 250.00 ms: met" in said
    assert "TPOT 10.00 of 5.00 ms: missed" in said


def test_a_target_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(Problem, match="more than 0 s"):
        trace("--slo-tpot", "0", folder=tmp_path)
