"""What a bench found, as pictures like the paper's figures 8 to 10. matplotlib is imported when the first is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.bench.calls import Answer
from cli.bench.statistics import attainment_by_scale
from cli.figures import PALETTE, new_figure, save
from services.scheduler.planner.goodput import Promise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALES = [0.1 * step for step in range(1, 41)]
MOST_CURVES = 6


def draw_all(report: Mapping[str, Any], stem: Path) -> list[Path]:
    """The PNG files that were written: `stem`-attainment.png and so on."""
    by_rate = sorted(report["runs"], key=lambda run: run["rate"])
    runs, lost = ([run for run in by_rate if bool(run["stopped"]) == stopped] for stopped in (False, True))
    if not runs:
        return []
    answers = {run["rate"]: [Answer.from_json(row) for row in run["answers"]] for run in runs}
    asked = report["promise"]
    promise = Promise(ttft=asked["ttft_s"], tpot=asked["tpot_s"], share=asked["share"])
    shown = dict(list(answers.items())[-MOST_CURVES:])
    written = [
        _figure(stem, "slo-scale", lambda axes: _by_scale(axes, shown, promise)),
        _figure(stem, "latency", lambda left, right: _latencies(left, right, shown, promise), panels=2),
    ]
    if len(by_rate) > 1:
        written.append(_figure(stem, "attainment", lambda axes: _by_rate(axes, runs, lost, promise)))
    if any(run["stages_s"] for run in runs):
        written.append(_figure(stem, "stages", lambda axes: _stages(axes, runs)))
    return written


def _figure(stem: Path, name: str, draw: Any, panels: int = 1) -> Path:
    figure, axes = new_figure(1, panels)
    draw(*axes.flat)
    file = stem.with_name(f"{stem.name}-{name}.png")
    save(figure, file)
    return file


def _by_rate(
    axes: "Axes", runs: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]], promise: Promise
) -> None:
    """`lost`: of what had been sent when they were stopped."""
    rates = [run["rate"] for run in runs]
    for key, label, style in (("joint", "both targets", "o-"), ("ttft", "TTFT", "^--"), ("tpot", "TPOT", "v--")):
        axes.plot(rates, [100 * run["attainment"][key] for run in runs], style, label=label)
    low, high = ([100 * run["attainment_interval"][side] for run in runs] for side in (0, 1))
    if lost:
        shares = [100 * run["attainment"]["joint"] for run in lost]
        axes.plot([run["rate"] for run in lost], shares, "o", color=PALETTE[0], fillstyle="none", label="lost, stopped")
    axes.fill_between(rates, low, high, alpha=0.15)
    _percent_axis(axes, promise)
    axes.set_xlabel("requests per second")


def _by_scale(axes: "Axes", answers: Mapping[float, Sequence[Answer]], promise: Promise) -> None:
    for rate, some in answers.items():
        shares = attainment_by_scale(some, promise, SCALES)
        axes.plot(SCALES, [100 * share for share in shares], label=f"{rate:.3g} requests/s")
    _percent_axis(axes, promise)
    axes.invert_xaxis()
    axes.set_xlabel(f"SLO scale (1: TTFT {promise.ttft:g} s, TPOT {promise.tpot:g} s)")


def _latencies(left: "Axes", right: "Axes", answers: Mapping[float, Sequence[Answer]], promise: Promise) -> None:
    for rate, some in answers.items():
        for axes, times in (
            (left, sorted(1e3 * a.ttft for a in some if a.ttft is not None)),
            (right, sorted(1e3 * a.tpot for a in some if a.tpot is not None and a.output_tokens > 1)),
        ):
            shares = [100 * (number + 1) / len(times) for number in range(len(times))]
            axes.step(times, shares, where="post", label=f"{rate:.3g} requests/s")
    for axes, name, target in ((left, "TTFT", promise.ttft), (right, "TPOT", promise.tpot)):
        axes.axvline(1e3 * target, color="grey", linestyle=":")
        axes.set_xlabel(f"{name}, milliseconds")
        axes.set_ylabel("requests, %")
        axes.set_ylim(0, 101)
        axes.legend()


def _stages(axes: "Axes", runs: Sequence[Mapping[str, Any]]) -> None:
    known = [run for run in runs if run["stages_s"]]
    labels, bottom = [f"{run['rate']:.3g}" for run in known], [0.0] * len(known)
    for stage in known[0]["stages_s"]:
        shares = [100 * run["stages_s"][stage] / (sum(run["stages_s"].values()) or 1.0) for run in known]
        axes.bar(labels, shares, bottom=bottom, label=stage, width=0.6)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    axes.set_xlabel("requests per second")
    axes.set_ylabel("of a request's time, %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _percent_axis(axes: "Axes", promise: Promise) -> None:
    axes.axhline(100 * promise.share, color="grey", linestyle=":")
    axes.set_ylabel("requests that keep their targets, %")
    axes.set_ylim(0, 101)
    axes.legend()
