"""A profile of a real engine, a real transfer and a real bus, and a simulation that reads it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from services.scheduler.simulator.profile import load_profile
from tests.models import make_model


def _run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_profile_of_this_machine_can_be_simulated(tmp_path: Path):
    folder, file, picture = make_model("llama", tmp_path / "model"), tmp_path / "profile.json", tmp_path / "profile.png"
    _run("profile", "--model", folder, "--most-tokens", "256", "--threads", "1", "--out", file, "--plot", picture)
    data = json.loads(file.read_text())
    (model,) = data["models"].values()
    assert len(model["fit"]["prefill"]) >= 6
    assert all(value >= 0 for value in model["parallel"]["1"]["prefill_ms"])
    assert len(data["transfer"]["fit"]) >= 6
    assert data["transfer"]["transport"] in {"cma", "tcp", "sysv", "posix"}
    assert 0 < data["hop"]["round_trip_ms"]["p1"] <= data["hop"]["round_trip_ms"]["p99"]
    assert data["hop_ms"] == data["hop"]["round_trip_ms"]["p50"] / 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    times = load_profile(str(file)).model("").times[1]
    assert times.batch_tokens == model["L_m"]
    _the_paper_s_form_says_the_same(model, times.prefill, times.decode_small)
    arguments = ["simulate", "--profile", file, "--placement", "tp1 + tp1", "--workload", "fixed:16/4"]
    outcome = json.loads(_run(*arguments, "--requests", "50", "--json"))
    assert outcome["attainment"]["tpot"] > 0
    assert outcome["stages"]["transfer"]["mean_s"] >= data["transfer_setup_ms"] / 1000


def _the_paper_s_form_says_the_same(
    model: dict, prefill: tuple[float, float, float], decode: tuple[float, float, float]
) -> None:
    """Of one prompt of 100 tokens, and of a step of 3 requests with 500 tokens of context in all."""
    c, h, m = model["appendix_a"], model["appendix_a"]["h"], model["appendix_a"]["m"]
    products = 4 * h * h + 2 * h * m
    layer = c["C1"] * 100 * products + c["C2"] * 3 * h * 100**2 + c["C3"]
    assert model["layers"] * layer == pytest.approx(prefill[0] + 100 * prefill[1] + 100**2 * prefill[2])
    layer = c["C4"] * products + c["C5"] * 3 * h * 500 + c["C6"] * 3
    assert model["layers"] * layer == pytest.approx(decode[0] + 500 * decode[1] + 3 * decode[2])


def test_what_is_given_is_not_measured(tmp_path: Path):
    folder, file = make_model("llama", tmp_path / "model"), tmp_path / "profile.json"
    arguments = ["profile", "--model", folder, "--most-tokens", "64", "--threads", "1", "--out", file]
    _run(*arguments, "--link", "12.5", "--hop-ms", "0.25")
    profile = load_profile(str(file))
    assert (profile.link_gigabytes_per_second, profile.hop_ms, profile.transfer_setup_ms) == (12.5, 0.25, 0.0)
