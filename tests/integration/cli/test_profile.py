"""A profile of a real engine, and a simulation that reads it."""

import json
from pathlib import Path

from typer.testing import CliRunner

from cli.app import app
from tests.models import make_model


def test_a_profile_of_this_machine_can_be_simulated(tmp_path: Path):
    folder = make_model("llama", tmp_path / "model")
    file = tmp_path / "profile.json"
    arguments = ["profile", "--model", str(folder), "--most-tokens", "256", "--threads", "1", "--out", str(file)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (model,) = json.loads(file.read_text())["models"].values()
    assert len(model["fit"]["prefill"]) >= 6
    assert all(value >= 0 for value in model["parallel"]["1"]["prefill_ms"])
    arguments = ["simulate", "--profile", str(file), "--placement", "tp1 + tp1", "--workload", "fixed:16/4"]
    done = CliRunner().invoke(app, [*arguments, "--requests", "50", "--json"], catch_exceptions=False)
    assert json.loads(done.output)["attainment"]["tpot"] > 0
