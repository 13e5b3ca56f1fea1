"""Pictures of a bench."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cli.bench import plots
from cli.bench.statistics import summary
from services.scheduler.planner.goodput import Promise
from tests.unit.cli.bench.answers import answered, failed

PROMISE = Promise(ttft=0.2, tpot=0.02)


def run(rate: float, *, lost: bool) -> dict[str, Any]:
    answers = [failed(), failed(1.0)] if lost else [answered(), answered(due=1.0)]
    figures = summary(answers, PROMISE)
    return {"rate": rate, "stopped": lost, "stages_s": {}, "answers": [one.to_json() for one in answers], **figures}


def test_a_search_shows_both_sides_of_what_it_found(tmp_path: Path, monkeypatch: Any):
    drawn: dict[str, Figure] = {}

    def save(figure: Figure, file: Path) -> None:
        drawn[file.name] = figure

    monkeypatch.setattr(plots, "save", save)
    promise = {"ttft_s": 0.2, "tpot_s": 0.02, "share": 0.9}
    plots.draw_all({"runs": [run(1.0, lost=False), run(2.0, lost=True)], "promise": promise}, tmp_path / "found")
    assert set(drawn) == {"found-slo-scale.png", "found-latency.png", "found-attainment.png"}
    (axes,) = drawn["found-attainment.png"].axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert [float(x) for x in lines["both targets"].get_xdata()] == [1.0]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    assert [float(x) for x in lines["lost, stopped"].get_xdata()] == [2.0]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    assert lines["lost, stopped"].get_fillstyle() == "none"
