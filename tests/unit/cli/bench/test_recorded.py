"""Recorded traffic as a bench's workload: at the rate and with the gaps that it had."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.problems import Problem
from services.scheduler.simulator.workload import Trace

STOP = Problem("enough is known")


@pytest.fixture(autouse=True)
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """50 requests at 4/s, two at a time."""
    monkeypatch.setattr("cli.simulation_options.RUNS", tmp_path)
    folder = tmp_path / "20260101-1" / "traffic"
    folder.mkdir(parents=True)
    rows = [{"arrival_s": 1e9 + i // 2 / 2, "input_len": 10 + i, "output_len": 20} for i in range(50)]
    (folder / "00000001.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bench(*arguments: str) -> None:
    with pytest.raises(Problem, match=str(STOP)):
        CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(("asked", "rate"), [((), 49 / 12), (("--rate", "2"), 2)])
def test_it_is_sent_at_the_rate_it_had_unless_told_otherwise(
    asked: tuple[str, ...], rate: float, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[Trace, Sequence[float]]] = []

    class Session:
        def __init__(self, server: object, trace: Trace, *_: object) -> None:
            self.trace = trace

        def run(self, rates: Sequence[float], *_: object) -> None:
            seen.append((self.trace, rates))
            raise STOP

    async def find_server(*_: object) -> Any:
        return type("Server", (), {"most_tokens": None})

    monkeypatch.setattr("cli.bench.session.Session", Session)
    monkeypatch.setattr("cli.bench.server.find_server", find_server)
    bench("--workload", "recorded", "--requests", "40", "--warmup", "5", *asked)
    ((trace, rates),) = seen
    assert list(rates) == [pytest.approx(rate)]
    assert trace.inputs == list(range(10, 55))


def test_every_round_of_the_experiment_has_a_trace_of_its_own_the_first_with_the_gaps_there_were(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[Sequence[Trace]] = []

    def predicted(profile: object, shape: object, traces: Sequence[Trace], promise: object) -> float:
        seen.append(traces)
        raise STOP

    monkeypatch.setattr("cli.bench.prediction.predicted", predicted)
    options = ("--profile", "a100-80g-distserve", "--requests", "40", "--warmup", "5", "--rounds", "3")
    bench("goodput", "--workload", "recorded", *options)
    first, second, third = seen[0]
    gaps = {round(b - a, 6) for a, b in zip(first.arrivals, first.arrivals[1:], strict=False)}
    assert first.inputs == list(range(10, 55))
    assert gaps == {0.0, max(gaps)}
    assert second.inputs != third.inputs
    assert set(second.inputs) <= set(range(10, 60))


def test_a_trace_that_cannot_be_read_is_said_in_a_line():
    with pytest.raises(Problem, match="No such file"):
        CliRunner().invoke(app, ["bench", "--trace", "/nowhere.jsonl"], catch_exceptions=False)
