"""Drawings of what `simulate`, `goodput` and `plan` found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.figures import INK, PALETTE, new_figure, save
from services.scheduler.planner.curve import Curve

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

KINDS = {"joint": "both targets", "ttft": "TTFT", "tpot": "TPOT"}


def plot_simulation(answer: dict[str, Any], ttft: "np.ndarray", tpot: "np.ndarray", file: Path) -> None:
    """Queues and memory over time, where the time goes, who was busy, and both latencies against their targets.

    `ttft` and `tpot` in seconds, of every request; what never happened is infinite.
    """
    title = f"{answer['placement']}, {answer['model']}, {answer['workload']} at {answer['rate']:.3g}/s"
    figure, axes = new_figure(3, 2, title)
    queues, memory, stages, busy, first, further = axes.flat
    _over_time(queues, answer["occupancy"], ("scheduler_queue", "prefill_queue", "decode_running"), 1)
    queues.set(title="Requests that wait and that run", ylabel="requests")
    _over_time(memory, answer["occupancy"], ("decode_kv", "prefill_kv"), 100)
    memory.set(title="KV blocks in use, of all instances", ylabel="percent", ylim=(0, 102))
    _stages(stages, answer["stages"])
    _bars(busy, {name.replace("_", " "): 100 * share for name, share in answer["utilisation"].items()})
    busy.set(title="Share of the time at work, and the fullest memory", xlabel="percent", xlim=(0, 100))
    kept = answer["attainment"]
    _latency(first, ttft, answer["slo_ttft_s"], f"TTFT: {kept['ttft']:.1%} in time")
    _latency(further, tpot, answer["slo_tpot_s"], f"TPOT: {kept['tpot']:.1%} in time, {kept['joint']:.1%} in both")
    save(figure, file)


def plot_goodput(answer: dict[str, Any], curve: Curve, share: float, file: Path) -> None:
    """Attainment of each target over rate, and where the goodput is."""
    figure, axes = new_figure(1, 1, f"{answer['placement']}: {answer['goodput']:.2f} requests/s, {share:.0%} kept")
    axis = axes[0, 0]
    rates = [point["rate"] for point in curve]
    for (kind, label), colour in zip(KINDS.items(), PALETTE, strict=False):
        style = "o-" if kind == "joint" else "--"
        axis.plot(rates, [100 * point[kind] for point in curve], style, color=colour, label=label, markersize=4)
    axis.axvline(answer["goodput"], color=INK, linewidth=0.8, linestyle=":")
    _attainment(axis, share, "requests/s")
    save(figure, file)


def plot_plan(rows: Sequence[dict[str, Any]], curves: Sequence[Curve], share: float, title: str, file: Path) -> None:
    """The best few placements side by side: attainment over the rate for each of their GPUs."""
    figure, axes = new_figure(1, 1, title)
    axis = axes[0, 0]
    for row, curve, colour in zip(rows, curves, PALETTE, strict=False):
        rates = [point["rate"] / row["gpus"] for point in curve]
        label = f"{row['placement']}  ({row['per_gpu']:.2f})"
        axis.plot(rates, [100 * point["joint"] for point in curve], "o-", color=colour, label=label, markersize=4)
        axis.axvline(row["per_gpu"], color=colour, linewidth=0.8, linestyle=":")
    _attainment(axis, share, "requests/s for each GPU")
    save(figure, file)


def _attainment(axis: "Axes", share: float, unit: str) -> None:
    axis.axhline(100 * share, color=INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel=unit, ylabel="requests that keep both targets, percent", ylim=(0, 102))
    axis.set_xlim(left=0)
    axis.legend(fontsize=8, loc="lower left")


def _over_time(axis: "Axes", occupancy: Sequence[dict[str, float]], names: Sequence[str], factor: float) -> None:
    times = [sample["time_s"] for sample in occupancy]
    for name, colour in zip(names, PALETTE, strict=False):
        if occupancy and name in occupancy[0]:
            values = [factor * sample[name] for sample in occupancy]
            axis.step(times, values, where="post", color=colour, linewidth=1, label=name.replace("_", " "))
    axis.set_xlabel("seconds")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _stages(axis: "Axes", stages: dict[str, dict[str, float]]) -> None:
    names = [f"{name.replace('_', ' ')} ({stage['share']:.0%})" for name, stage in stages.items()]
    _bars(axis, dict(zip(names, (1000 * stage["mean_s"] for stage in stages.values()), strict=True)))
    axis.set(title="Where the time of a request goes", xlabel="milliseconds, mean")


def _bars(axis: "Axes", values: dict[str, float]) -> None:
    axis.barh(list(values), list(values.values()), color=PALETTE[: len(values)])
    axis.invert_yaxis()


def _latency(axis: "Axes", seconds: "np.ndarray", target: float, title: str) -> None:
    import numpy as np

    ended = np.sort(seconds[np.isfinite(seconds)])
    axis.step(1000 * ended, 100 * np.arange(1, len(ended) + 1) / len(seconds), where="post", color=PALETTE[0])
    axis.axvline(1000 * target, color=INK, linewidth=0.8, linestyle=":")
    axis.set(title=title, xlabel="milliseconds (dotted: the target)", ylabel="percent of requests", ylim=(0, 102))
    axis.set_xlim(left=0)
