"""What `up` refuses before it starts anything."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.problems import Problem
from tests.profiles import write_profile

TARGETS = ["--slo-ttft", "1", "--slo-tpot", "0.05"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--plan", "FILE", "--decode", "2"], "leave out --prefill, --decode and --colocated"),
        (["--plan", "nowhere.json"], "plan nowhere.json: No such file"),
        (["--plan", "FILE"], "instances.decode.tp is 2: tensor parallelism other than 1 cannot be served yet"),
        (["--replan"], "--replan needs --profile"),
        (["--replan", "--profile", "PROFILE"], "give --slo-ttft and --slo-tpot"),
        (["--replan", "--profile", "PROFILE", "--decode", "2", "--slo-ttft", "1"], "give --slo-tpot"),
        (["--profile", "nowhere", *TARGETS], "no profile 'nowhere'"),
        (["--replan", "--profile", "PROFILE", *TARGETS], "at least three, not colocated"),
        (
            ["--replan", "--profile", "PROFILE", "--colocated", "--decode", "4", *TARGETS],
            "at least three, not colocated",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(arguments: list[str], complaint: str, tmp_path: Path):
    plan = tmp_path / "plan.json"
    instances = {"prefill": None, "decode": {"count": 1, "tp": 2, "pp": 1}, "order": "chunked", "settings": {}}
    plan.write_text(json.dumps({"format": 1, "placement": "x", "targets": {}, "instances": instances}))
    profile = write_profile(tmp_path / "profile.json", prefill_ms=(1.0, 0.5, 0.0), decode_ms=(10.0, 0.0, 1.0))
    given = [{"FILE": str(plan), "PROFILE": str(profile)}.get(argument, argument) for argument in arguments]
    with pytest.raises(Problem, match=complaint):
        CliRunner().invoke(app, ["up", "--port", "0", *given], catch_exceptions=False)
