"""`./distserve bench compare`: two results side by side. Intervals are 95 %, by bootstrap over requests, seeded."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cli.bench.calls import Answer
from cli.bench.shapes import ratio
from cli.bench.statistics import Interval, percentile_interval, resampled
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise

Values = list[float]
SEEDS = (0, 1)  # of A, of B: their resamples have nothing to do with each other


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of both, each with its interval, and B / A with its own; None where it cannot be said."""

    name: str
    a: float
    b: float
    a_interval: Interval
    b_interval: Interval
    ratio: float | None
    ratio_interval: Interval | None


def compare_reports(console: Console, a: tuple[str, Mapping[str, Any]], b: tuple[str, Mapping[str, Any]]) -> None:
    """`a`, `b`: name and content. Problem if they have no rate in common."""
    (a_name, a_report), (b_name, b_report) = a, b
    if ("shapes" in a_report) != ("shapes" in b_report):
        raise Problem("one is of `bench goodput`, the other of `bench`: they have nothing in common")
    for line in differences(a_report, b_report):
        console.print(f"[yellow]{line}[/yellow]")
    if "shapes" in a_report:
        console.print(shapes_table(a, b))
        return
    for name, report in (a, b):
        stopped = [f"{run['rate']:.3g}" for run in report["runs"] if run["stopped"]]
        if stopped:
            console.print(f"[dim]{name}: stopped when they were lost, so not compared: {', '.join(stopped)}/s[/dim]")
    for a_run, b_run in pairs(a_report["runs"], b_report["runs"]):
        rates = f"{a_run['rate']:.3g} requests/s" + (
            f" and {b_run['rate']:.3g}" if a_run["rate"] != b_run["rate"] else ""
        )
        invalid = [name for name, run in ((a_name, a_run), (b_name, b_run)) if not run["valid"]]
        table = Table("", a_name, b_name, "B / A", title=rates + "".join(f", {name} is not valid" for name in invalid))
        for figure in figures(a_run, b_run, _promise(a_report), _promise(b_report)):
            table.add_row(*_row(figure))
        console.print(table)
    if "goodput" in a_report and "goodput" in b_report and a_report["goodput"]:
        console.print(f"Goodput: {goodputs(a_report, b_report)}")


def goodputs(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """What two searches found. One draw says nothing about spread, but each answer lies between two of its steps."""
    (a_low, a_high), (b_low, b_high) = _bracket(a), _bracket(b)
    steps = f"{b_low / a_high:.2f}-{b_high / a_low:.2f} by the steps of the searches; one draw each"
    return f"{a_low:.3g} and {b_low:.3g} requests/s, B / A {b_low / a_low:.2f} ({steps})"


def _bracket(report: Mapping[str, Any]) -> Interval:
    """The rate that was found to be kept, and the next one that was lost."""
    low = report["goodput"]
    return low, min((run["rate"] for run in report["runs"] if run["rate"] > low and not run["kept"]), default=math.inf)


def shapes_table(a: tuple[str, Mapping[str, Any]], b: tuple[str, Mapping[str, Any]]) -> Table:
    """Goodput of each shape that both have, round by round. Problem if there is none."""
    (a_name, a_report), (b_name, b_report) = a, b
    b_rates = {shape["shape"]: shape["rates"] for shape in b_report["shapes"]}
    common = [(one["shape"], one["rates"]) for one in a_report["shapes"] if one["shape"] in b_rates]
    if not common:
        raise Problem("the two have no shape in common: measure both with the same --devices")
    table = Table("", a_name, b_name, "B / A", title="Goodput of each round, requests per second")
    for shape, rates in common:
        others = b_rates[shape]
        rounds = min(len(rates), len(others))
        found = ratio(others[:rounds], rates[:rounds])
        row = (", ".join(f"{rate:.3g}" for rate in some) for some in (rates, others))
        table.add_row(shape, *row, "-" if found is None else _ratio(*found))
    return table


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What is not alike though it should be, if the two are to be compared."""
    found = []
    for what, keys in (
        ("workload", ("name", "seed", "cv", "scale_lengths", "mean_input", "mean_output")),
        ("settings", ("model", "device", "dtype", "cores_of_a_device", "seed", "cv", "scale_lengths")),
        ("promise", ("ttft_s", "tpot_s", "share")),
        ("machine", ("cpu", "cores")),
    ):
        found += [
            f"{what} {key}: {a.get(what, {}).get(key)} and {b.get(what, {}).get(key)}"
            for key in keys
            if a.get(what, {}).get(key) != b.get(what, {}).get(key)
        ]
    return found


def pairs(
    a_runs: Sequence[Mapping[str, Any]], b_runs: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Whole runs of the same rate; where each has only one, these, whatever their rates."""
    a_runs, b_runs = ([run for run in runs if not run["stopped"]] for runs in (a_runs, b_runs))
    if len(a_runs) == len(b_runs) == 1:
        return [(a_runs[0], b_runs[0])]
    b_by_rate = {run["rate"]: run for run in b_runs}
    found = [(run, b_by_rate[run["rate"]]) for run in a_runs if run["rate"] in b_by_rate]
    if not found:
        raise Problem("the two have no rate in common: measure both with the same --rates")
    return found


def figures(a_run: Mapping[str, Any], b_run: Mapping[str, Any], a: Promise, b: Promise) -> list[Figure]:
    a_columns, b_columns = _columns(a_run, a), _columns(b_run, b)
    found = []
    for name, column, statistic in (
        ("both targets kept", "kept", lambda rows: rows.mean(axis=1)),
        *((f"TTFT p{p} ms", "ttft", _percentile(p)) for p in (50, 90, 99)),
        *((f"TPOT p{p} ms", "tpot", _percentile(p)) for p in (50, 90, 99)),
        ("whole answer p50 ms", "whole", _percentile(50)),
    ):
        if a_columns[column] and b_columns[column]:
            found.append(_figure(name, a_columns[column], b_columns[column], statistic))
    return found


def _figure(name: str, a: Values, b: Values, statistic: Callable[[Any], Any]) -> Figure:
    a_samples, b_samples = resampled(a, statistic, SEEDS[0]), resampled(b, statistic, SEEDS[1])
    a_value, b_value = (float(statistic(np.asarray([values], dtype=float))[0]) for values in (a, b))
    ratio = b_value / a_value if a_value else None
    certain = bool((a_samples > 0).all())
    ratio_interval = percentile_interval(b_samples / a_samples) if certain else None
    return Figure(
        name, a_value, b_value, percentile_interval(a_samples), percentile_interval(b_samples), ratio, ratio_interval
    )


def _columns(run: Mapping[str, Any], promise: Promise) -> dict[str, Values]:
    answers = [Answer.from_json(row) for row in run["answers"]]
    return {
        "kept": [float(answer.keeps(promise.ttft, promise.tpot)) for answer in answers],
        "ttft": [1e3 * answer.ttft for answer in answers if answer.ttft is not None],
        "tpot": [1e3 * answer.tpot for answer in answers if answer.tpot is not None and answer.output_tokens > 1],
        "whole": [1e3 * (answer.last - answer.call.due) for answer in answers if answer.ended and answer.last],
    }


def _percentile(share: float) -> Callable[[Any], Any]:
    return lambda rows: np.percentile(rows, share, axis=1)


def _promise(report: Mapping[str, Any]) -> Promise:
    asked = report["promise"]
    return Promise(ttft=asked["ttft_s"], tpot=asked["tpot_s"], share=asked["share"])


def _row(figure: Figure) -> tuple[str, str, str, str]:
    of_both = "-" if figure.ratio is None else _ratio(figure.ratio, figure.ratio_interval)
    return figure.name, _with(figure.a, figure.a_interval), _with(figure.b, figure.b_interval), of_both


def _ratio(value: float, interval: Interval | None) -> str:
    return f"{value:.2f}" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else "")


def _with(value: float, interval: Interval) -> str:
    return f"{value:.3g} ({interval[0]:.3g}-{interval[1]:.3g})"
