"""`simulate`, `goodput` and `plan` as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.problems import Problem

SHORT = ["--model", "opt-13b", "--requests", "200"]


def _run(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_simulate_prints_attainment_as_fractions():
    answer = json.loads(_run("simulate", "--placement", "2x tp2,pp1 + 1x tp1,pp1", *SHORT, "--rate", "4", "--json"))
    assert set(answer["attainment"]) == {"ttft", "tpot", "joint"}
    assert 0.9 < answer["attainment"]["joint"] <= 1
    assert set(answer["stages"]) == {"prefill_queue", "prefill", "transfer", "decode_queue", "decode"}
    assert answer["gpus"] == 5
    assert answer["occupancy"][-1]["time_s"] > 40


def test_simulate_serves_a_recorded_trace_at_its_own_rate(tmp_path: Path):
    file = tmp_path / "calls.jsonl"
    rows = [{"arrival_s": 10 + i / 4, "input_len": 300, "output_len": 20} for i in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["simulate", "--placement", "tp1 colocated", "--model", "opt-13b", "--trace", str(file), "--json"]
    recorded = json.loads(_run(*run))
    assert recorded["rate"] == pytest.approx(4)
    assert recorded["makespan_s"] == pytest.approx(79 / 4, abs=2)
    assert json.loads(_run(*run, "--rate", "8"))["makespan_s"] == pytest.approx(79 / 8, abs=2)


def test_a_person_reads_a_table():
    assert "where the time goes" in _run("simulate", "--placement", "tp1 colocated", *SHORT)


def test_goodput_is_given_per_gpu():
    answer = json.loads(
        _run("goodput", "--placement", "tp1 + tp1", *SHORT, "--workload", "fixed:512/64", "--seeds", "2", "--json")
    )
    assert answer["per_gpu"] == pytest.approx(answer["goodput"] / 2)
    assert answer["half_width"] > 0


def test_plan_writes_what_it_found(tmp_path: Path):
    file = tmp_path / "plan.json"
    arguments = ["--gpus-per-node", "2", "--workload", "fixed:512/64", "--seeds", "1", "--workers", "1"]
    _run("plan", *SHORT, *arguments, "--slo-ttft", "0.4", "--slo-tpot", "0.04", "--out", str(file))
    plan = json.loads(file.read_text())
    assert plan["placement"] == "1x tp1,pp1 + 1x tp1,pp1"
    assert plan["instances"]["decode"] == {"count": plan["units"], "tp": 1, "pp": 1}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["simulate", "--placement", "3 of them", "--model", "opt-13b"], "wanted"),
        (["simulate", "--placement", "tp1 + tp1", "--profile", "h900"], "no profile 'h900'"),
        (["simulate", "--placement", "tp1 + tp1"], "no model"),
        (["simulate", "--placement", "tp1 + tp1", "--model", "opt-66b"], "no figures"),
        (["simulate", "--placement", "tp1 + tp1", "--model", "opt-13b", "--workload", "odes"], "no workload"),
        (["goodput", "--placement", "tp1 + tp1", "--model", "opt-13b", "--slo-ttft", "0"], "must be positive"),
        (["plan", "--model", "opt-13b", "--network", "slow"], "high, low or a number"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(arguments: list[str], complaint: str):
    with pytest.raises(Problem, match=complaint):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
