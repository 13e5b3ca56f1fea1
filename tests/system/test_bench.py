"""`./distserve bench` against `./distserve up`, as a person would: it finds the stack, and its stages."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.profiles import write_profile
from tests.system.running_up import ROOT, Up, up

__all__ = ["up"]


def test_it_measures_the_stack_that_runs_and_knows_its_stages(up: Callable[..., Up], tmp_path: Path):
    running = up()
    file = tmp_path / "result.json"
    options = ("--url", running.url, "--rate", "10", "--requests", "12", "--warmup", "1", "--workload", "fixed:40/8")
    command = [sys.executable, "-m", "cli", "bench", *options, "--out", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=45, check=False)
    assert file.exists(), done.stdout + done.stderr
    (run,) = json.loads(file.read_text())["runs"]
    assert (run["requests"], run["failed"], run["shorter_than_wanted"]) == (12, 0, 0)
    assert {row["prompt_tokens"] for row in run["answers"]} == {40}
    assert run["stages_s"]["prefill"] > 0
    assert run["stages_s"]["decode"] > 0
    assert (tmp_path / "result-stages.png").stat().st_size > 1000


def test_goodput_starts_its_own_stacks_and_stops_them(tmp_path: Path):
    profile = write_profile(tmp_path / "profile.json", prefill_ms=(1.0, 0.1, 0.0), decode_ms=(2.0, 0.001, 0.1))
    file = tmp_path / "result.json"
    options = ["--devices", "1", "--rounds", "1", "--requests", "10", "--warmup", "0", "--profile", profile]
    impossible = ["--workload", "fixed:16/4", "--rate", "20", "--slo-ttft", "0.00001", "--slo-tpot", "1"]
    command = [sys.executable, "-m", "cli", "bench", "goodput", *options, *impossible, "--out", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert file.exists(), done.stdout + done.stderr
    (shape,) = json.loads(file.read_text())["shapes"]
    assert (shape["shape"], shape["rates"], shape["simulated"]) == ("1 colocated", [0], 0)
    runs = shape["rounds"][0]["runs"]
    assert runs
    assert not any(run["kept"] for run in runs)
    assert "share all cores" in done.stdout
