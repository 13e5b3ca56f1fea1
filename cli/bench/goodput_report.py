"""What the experiment found: goodput per device of each shape, ratios, the prediction, and who used the cores."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cli.bench import report as reports
from cli.bench.experiment import Experiment, Found
from cli.bench.shapes import Shape, ratio
from cli.bench.statistics import Interval
from services.scheduler.simulator.profile import Profile


class GoodputReport:
    """Of the rounds that are over."""

    def __init__(
        self, experiment: Experiment, predictions: Mapping[Shape, float], profile: Profile, settings: Mapping[str, Any]
    ) -> None:
        self._experiment, self._predictions = experiment, predictions
        self._profile, self._settings = profile, settings

    @property
    def _rates(self) -> dict[Shape, list[float]]:
        return {shape: [one.rate for one in found] for shape, found in self._experiment.found.items()}

    @property
    def _colocated(self) -> Shape:
        return next(shape for shape in self._experiment.found if shape.colocated)

    def show(self, console: Console) -> None:
        console.print(self._table())
        best = self._best_split()
        if best is not None:
            console.print(f"[bold]{best} / colocated: {_with(ratio(self._rates[best], self._rates[self._colocated]))}")
        console.print(self._cpu_table())
        console.print(f"[dim]{self._sharing()}[/dim]")

    def write(self, file: Path) -> None:
        promise, traces = self._experiment.promise, self._experiment.traces
        content = {
            "format": reports.FORMAT,
            "machine": reports.machine(),
            "settings": dict(self._settings),
            "workload": {
                "name": traces[0].name,
                "requests": len(traces[0]),
                "mean_input": statistics.fmean(length for trace in traces for length in trace.inputs),
                "mean_output": statistics.fmean(length for trace in traces for length in trace.outputs),
            },
            "promise": {"ttft_s": promise.ttft, "tpot_s": promise.tpot, "share": promise.share},
            "profile": {"name": self._profile.name, "source": self._profile.source},
            "shapes": [self._shape(shape) for shape in self._rates],
        }
        reports.write(file, content)

    def reasons(self) -> list[str]:
        """Why it is not valid, if it is not."""
        return [
            f"{s}: {reason}" for s, found in self._experiment.found.items() for one in found for reason in one.reasons
        ]

    def _sharing(self) -> str:
        """Who computes where."""
        if self._settings["device"] != "cpu":
            return "A device is a GPU. Everything but the engines shares the CPU."
        return (
            f"A device is {self._settings['cores_of_a_device']} core(s); an engine computes on its own only. "
            "Gateway, scheduler, NATS, load, and whatever else the instances do, share all cores."
        )

    def _best_split(self) -> Shape | None:
        splits = [shape for shape in self._rates if not shape.colocated]
        return max(splits, key=lambda shape: statistics.fmean(self._rates[shape]), default=None)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, title="Goodput, requests per second", title_justify="left")
        for column in ("", "each round", "per device", "/ colocated", "simulated per device", "measured / simulated"):
            table.add_column(column, justify="left" if not column else "right", overflow="fold")
        for shape, rates in self._rates.items():
            mean, expected = statistics.fmean(rates), self._predictions[shape]
            table.add_row(
                str(shape),
                ", ".join(f"{rate:.3g}" for rate in rates),
                f"{mean / shape.devices:.3g}",
                "" if shape.colocated else _with(ratio(rates, self._rates[self._colocated])),
                f"{expected / shape.devices:.3g}",
                f"{mean / expected:.2f}" if expected else "-",
            )
        return table

    def _cpu_table(self) -> Table:
        shares = {shape: _mean_shares(found) for shape, found in self._experiment.found.items()}
        parts = sorted({part for share in shares.values() for part in share})
        table = Table(box=box.SIMPLE_HEAD, title="Cores used at that rate", title_justify="left")
        table.add_column("")
        for part in (*parts, "all"):
            table.add_column(part, justify="right")
        for shape, share in shares.items():
            columns = [f"{share[part]:.2f}" if part in share else "" for part in parts]
            table.add_row(str(shape), *columns, f"{sum(share.values()):.2f}")
        return table

    def _shape(self, shape: Shape) -> dict[str, Any]:
        found = ratio(self._rates[shape], self._rates[self._colocated])
        return {
            "shape": str(shape),
            "devices": shape.devices,
            "rates": self._rates[shape],
            "per_device": statistics.fmean(self._rates[shape]) / shape.devices,
            "ratio": found[0] if found else None,
            "ratio_interval": found[1] if found else None,
            "simulated": self._predictions[shape],
            "rounds": [one.to_json() for one in self._experiment.found[shape]],
        }


def _mean_shares(found: list[Found]) -> dict[str, float]:
    known = [one.cpu_shares for one in found if one.cpu_shares]
    parts = {part for shares in known for part in shares}
    return {part: statistics.fmean(shares.get(part, 0.0) for shares in known) for part in parts}


def _with(found: tuple[float, Interval | None] | None) -> str:
    if found is None:
        return "-"
    value, interval = found
    return f"{value:.2f}" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else "")
