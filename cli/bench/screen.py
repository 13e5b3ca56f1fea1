"""The run in the terminal: a table that grows by a line for every rate, and a bar for the one that is going on."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.bench.calls import Answer
from cli.bench.load import Run
from cli.bench.measure import Measured
from cli.bench.statistics import attainment, spread
from services.scheduler.planner.goodput import Promise

COLUMNS = ("rate", "requests", "failed", "TTFT ms", "TPOT ms", "kept", "goodput", "tok/s", "late")
FINE_SECONDS = 0.1  # below, tenths of milliseconds are shown
CAPTION = "times: p50/p90/p99; goodput: requests/s that kept both targets; late: sent, p99 ms"


class Screen:
    """Use it as a context manager. Without a terminal it prints the table at the end only."""

    def __init__(self, console: Console, title: str, promise: Promise) -> None:
        self._console, self._title, self._promise = console, title, promise
        self.label = ""  # of the runs to come
        self._rows: list[tuple[str, ...]] = []
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("")
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._rows:
            self._console.print(self._table(self._rows))

    def show(self, rate: float, run: Run) -> None:
        if self._console.is_terminal:
            over = sum(answer.over for answer in run.answers)
            self._progress.update(
                self._task, description=f"{self._named(rate)} requests/s", completed=over, total=len(run.answers)
            )
            row = _row(self._named(rate), run.counted, run.seconds, self._promise)
            self._live.update(Group(self._table([*self._rows, row]), self._progress), refresh=True)

    def add(self, measured: Measured) -> None:
        run, mark = measured.run, "" if measured.verdict.valid else " !"
        seconds = measured.summary["seconds"]
        self._rows.append(
            _row(f"{self._named(measured.rate)}{mark}", run.counted, seconds, self._promise, stopped=run.stopped)
        )

    def _named(self, rate: float) -> str:
        return f"{self.label} {rate:.3g}".lstrip()

    def _table(self, rows: Sequence[tuple[str, ...]]) -> Table:
        table = Table(
            title=self._title,
            caption=CAPTION,
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            title_justify="left",
            caption_justify="left",
        )
        for column in COLUMNS:
            table.add_column(column, justify="right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        return table


def _row(
    rate: str, answers: Sequence[Answer], seconds: float, promise: Promise, *, stopped: bool = False
) -> tuple[str, ...]:
    sent = [answer for answer in answers if answer.sent is not None]
    over = [answer for answer in sent if answer.over]
    kept = attainment(over, promise)["joint"]
    ended = [answer for answer in over if answer.ended]
    late = spread([answer.late for answer in sent if answer.late is not None])
    per_second = 1 / seconds if seconds > 0 else 0.0
    return (
        rate,
        f"{len(over)}/{len(answers)}",
        str(len(over) - len(ended)),
        _milliseconds([answer.ttft for answer in sent if answer.ttft is not None]),
        _milliseconds([answer.tpot for answer in ended if answer.tpot is not None and answer.output_tokens > 1]),
        "lost" if stopped else f"{kept:.1%}" if over else "-",
        f"{kept * len(over) * per_second:.2f}",
        f"{sum(answer.output_tokens for answer in ended) * per_second:.0f}",
        f"{1e3 * late['p99']:.1f}" if late else "-",
    )


def _milliseconds(values: Sequence[float]) -> str:
    found = spread(values)
    if not found:
        return "-"
    digits = 1 if found["p50"] < FINE_SECONDS else 0
    return "/".join(f"{1e3 * found[key]:.{digits}f}" for key in ("p50", "p90", "p99"))
