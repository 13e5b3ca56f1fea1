"""One bench from the first request to its files: measure, show, write, draw, and say whether it is valid."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.bench import report as reports
from cli.bench.measure import Measured, Measurement
from cli.bench.plots import draw_all
from cli.bench.screen import Screen
from cli.bench.server import Server
from cli.bench.stages import stages_of_runs
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.workload import Trace


class Session:
    def __init__(
        self,
        server: Server,
        trace: Trace,
        warmup: int,
        promise: Promise,
        settings: Mapping[str, Any],
        file: Path,
        run_folder: Path | None,
    ) -> None:
        """`run_folder`: of the stack behind `server`, if it is one of this checkout's."""
        self._server, self._trace, self._promise, self._settings = server, trace, promise, settings
        self._file, self._run_folder = file, run_folder
        self._console = Console()
        title = f"{server.model} at {server.url}, {trace.name}, TTFT {promise.ttft:g} s, TPOT {promise.tpot:g} s"
        self._screen = Screen(self._console, title, promise)
        self._measurement = Measurement(server, trace, warmup, promise, self._screen)

    def run(self, rates: Sequence[float], counts: Sequence[int], tolerance: float | None) -> None:
        """Every rate with its count of requests; with `tolerance` a search that begins at the first.

        Problem at the end if what was found is not valid.
        """
        found: float | None = None
        with self._screen:
            if tolerance is not None:
                found = self._measurement.search(rates[0], tolerance)
            else:
                for rate, count in zip(rates, counts, strict=True):
                    self._measurement.at(rate, requests=count)
        done = self._measurement.done
        traces = self._run_folder / "traces" if self._run_folder else None
        content = reports.report(
            server=self._server,
            trace=self._trace,
            settings=self._settings,
            promise=self._promise,
            done=done,
            stages=stages_of_runs(traces, [measured.run.name for measured in done]),
        )
        if found is not None:
            content["goodput"] = found
            self._console.print(f"Goodput: [bold]{found:.3g} requests/s[/bold] keep both targets")
        reports.write(self._file, content)
        pictures = draw_all(content, self._file.with_suffix(""))
        self._console.print(f"Wrote {self._file}" + "".join(f", {picture.name}" for picture in pictures))
        self._say_what_matters(done)
        _refuse_invalid(decisive(done, found))

    def _say_what_matters(self, done: Sequence[Measured]) -> None:
        busiest = max(done, key=lambda measured: measured.generator["cpu_share"])
        generator = busiest.generator
        self._console.print(
            f"[dim]Generator: {generator['cpu_share']:.1%} of a core at most, "
            f"{generator['cpu_us_per_piece']:.0f} µs for each piece received[/dim]"
        )
        short = sum(measured.summary["shorter_than_wanted"] for measured in done)
        if short:
            self._console.print(f"[yellow]{short} answers are shorter than the workload says[/yellow]")
        errors = [answer.error for measured in done for answer in measured.run.counted if answer.error]
        if errors:
            self._console.print(f"[yellow]{len(errors)} requests failed, the first with: {errors[0]}[/yellow]")


def decisive(done: Sequence[Measured], found: float | None) -> list[Measured]:
    """The runs that must be valid for the result to be: all, and of a search those on both sides of what it found."""
    if found is None:
        return list(done)
    above = [measured for measured in done if measured.rate > found and not measured.kept]
    return [measured for measured in done if measured.rate == found] + sorted(above, key=lambda m: m.rate)[:1]


def _refuse_invalid(measured: Sequence[Measured]) -> None:
    reasons = [f"at {one.rate:.3g} requests/s {reason}" for one in measured for reason in one.verdict.reasons]
    if reasons:
        raise Problem("not valid: " + "; ".join(reasons))
