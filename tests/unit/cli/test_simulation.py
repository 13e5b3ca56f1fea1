"""`simulate`, `goodput` and `plan` as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.plan_file import read_plan
from cli.problems import Problem
from cli.simulation_options import draws_at_unit_rate
from services.scheduler.planner.search import Question
from tests.profiles import write_profile

PNG = b"\x89PNG"
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


def test_recorded_traffic_is_that_of_the_last_run_that_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cli.simulation_options.RUNS", tmp_path)
    run = ["simulate", "--placement", "tp1 colocated", "--model", "opt-13b", "--workload", "recorded", "--json"]
    with pytest.raises(Problem, match="has served a request yet"):
        CliRunner().invoke(app, run, catch_exceptions=False)
    for name, count in (("20260101-1", 20), ("20260102-1", 30), ("20260103-1", 0)):
        (tmp_path / name / "traffic").mkdir(parents=True)
        rows = [{"arrival_s": 1e9 + i / 2, "input_len": 300, "output_len": 20} for i in range(count)]
        (tmp_path / name / "traffic" / "00000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = json.loads(_run(*run))
    assert answer["requests"] == 30
    assert answer["rate"] == pytest.approx(2)


def test_draws_of_a_trace_after_the_first_are_resampled(tmp_path: Path):
    file = tmp_path / "calls.jsonl"
    rows = [{"arrival_s": i**2, "input_len": 10 + i, "output_len": 20} for i in range(50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recorded, again, third = draws_at_unit_rate(file, "chatbot", 40, seed=1, cv=None, draws=3)
    assert recorded.inputs == list(range(10, 50))
    assert sorted(set(again.inputs)) != recorded.inputs
    assert again.inputs != third.inputs
    (even,) = draws_at_unit_rate(file, "chatbot", 40, seed=1, cv=0, draws=1)
    assert even.inputs == recorded.inputs
    assert even.cv == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("asked", "served", "draws"), [((), 60, 1), (("--requests", "40"), 40, 1), (("--requests", "90"), 90, 3)]
)
def test_a_plan_for_a_trace_that_is_long_enough_serves_it_as_it_is_once(
    asked: tuple[str, ...], served: int, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "calls.jsonl"
    rows = [{"arrival_s": i, "input_len": 10 + i, "output_len": 20} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[Question] = []

    def make_plan(question: Question, workers: object) -> None:
        seen.append(question)
        raise Problem("enough is known")

    monkeypatch.setattr("cli.plan.make_plan", make_plan)
    with pytest.raises(Problem, match="enough is known"):
        _run("plan", "--model", "opt-13b", "--trace", str(file), "--workers", "1", *asked)
    traces = seen[0].traces
    assert [len(trace) for trace in traces] == [served] * draws
    assert (traces[0].inputs == list(range(10, 10 + served))) == (draws == 1)


def test_a_profile_of_this_machine_is_planned_for_what_the_engine_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[bool] = []

    def make_plan(question: Question, workers: object) -> None:
        seen.append(question.servable)
        raise Problem("enough is known")

    monkeypatch.setattr("cli.plan.make_plan", make_plan)
    mine = write_profile(tmp_path / "mine.json", prefill_ms=(1.0, 0.5, 0.0), decode_ms=(10.0, 0.0, 1.0))
    own, shipped = ["--profile", str(mine)], ["--model", "opt-13b"]
    for options in (own, [*own, "--any-shape"], shipped, [*shipped, "--servable"]):
        with pytest.raises(Problem, match="enough is known"):
            _run("plan", *options, "--requests", "20", "--workers", "1")
    assert seen == [True, False, False, True]


@pytest.mark.parametrize(
    ("command", "default"), [("simulate", "or 1000"), ("goodput", "or 2000"), ("plan", "4000 at most")]
)
def test_help_says_how_many_requests_there_are(command: str, default: str):
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    (line,) = [line for line in said.splitlines() if "--requests" in line]
    assert f"the trace's, {default}" in line


def test_a_person_reads_a_table():
    assert "where the time goes" in _run("simulate", "--placement", "tp1 colocated", *SHORT)


def test_goodput_is_given_per_gpu():
    answer = json.loads(
        _run("goodput", "--placement", "tp1 + tp1", *SHORT, "--workload", "fixed:512/64", "--seeds", "2", "--json")
    )
    assert answer["per_gpu"] == pytest.approx(answer["goodput"] / 2)
    assert answer["half_width"] > 0


@pytest.mark.parametrize("command", ["simulate", "goodput"])
def test_what_was_found_can_be_drawn(command: str, tmp_path: Path):
    file = tmp_path / "drawn.png"
    _run(command, "--placement", "tp1 + tp1", *SHORT, "--workload", "fixed:256/16", "--plot", str(file))
    assert file.read_bytes().startswith(PNG)


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(Problem, match=r"cannot draw .*drawn\.xyz"):
        _run("simulate", "--placement", "tp1 + tp1", *SHORT, "--plot", str(tmp_path / "drawn.xyz"))


@pytest.mark.parametrize("command", ["simulate", "goodput"])
def test_nothing_is_drawn_by_the_rules_of_the_authors(command: str, tmp_path: Path):
    file = tmp_path / "drawn.png"
    with pytest.raises(Problem, match="leave one of them out"):
        _run(command, "--placement", "tp1 + tp1", *SHORT, "--compat", "simdistserve", "--plot", str(file))


def test_plan_writes_what_it_found(tmp_path: Path):
    file = tmp_path / "plan.json"
    arguments = ["--gpus-per-node", "2", "--workload", "fixed:512/64", "--seeds", "1", "--workers", "1"]
    picture = tmp_path / "plan.png"
    targets = ["--slo-ttft", "0.4", "--slo-tpot", "0.04"]
    said = _run("plan", *SHORT, *arguments, *targets, "--out", str(file), "--plot", str(picture))
    assert picture.read_bytes().startswith(PNG)
    plan = json.loads(file.read_text())
    assert plan["placement"] == "1x tp1,pp1 + 1x tp1,pp1"
    assert plan["instances"]["decode"] == {"count": plan["units"], "tp": 1, "pp": 1}
    start = read_plan(file)
    assert (start.prefill, start.decode, start.ttft_seconds) == (plan["units"], plan["units"], 0.4)
    assert f"./distserve up --plan {file}" in said
    assert "docker compose up --detach --scale prefill=1 --scale decode=1" in said


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
