"""What came of it: a table for people, JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cli.chaos.leftovers import MIB
from cli.chaos.outages import Trouble
from cli.chaos.schedule import Fault
from cli.chaos.tally import UNDISTURBED_SECONDS, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    seed: int
    seconds: float
    streams: int
    answers: int  # that came to their end
    tokens: int  # events with tokens in all of them
    faults: Sequence[tuple[Fault, str]]  # and what they befell
    rows: Sequence[Row]
    longest_silence_seconds: float  # of any stream
    stranded_blocks: int
    memory: Mapping[str, tuple[int, int]]  # bytes of each part before and after
    troubles: Sequence[Trouble]  # after which clients came again, excused or not
    violations: Sequence[str]

    def table(self) -> Table:
        table = Table(
            "fault", title=f"seed {self.seed}, {self.seconds:.0f} s, {self.streams} streams", title_justify="left"
        )
        for name in ("times", "affected", "came again", "recovered", "p50 s", "p99 s", "lost", "repeated"):
            table.add_column(name, justify="right")
        for row in self.rows:
            counts = (row.times, row.affected, row.came_again, row.recovered)
            times = (row.percentile(0.5), row.percentile(0.99))
            shown = ["-" if seconds is None else f"{seconds:.1f}" for seconds in times]
            table.add_row(row.name, *map(str, counts), *shown, str(row.lost), str(row.repeated))
        return table

    def lines(self) -> list[str]:
        grown = ", ".join(f"{name} {old / MIB:.0f} → {new / MIB:.0f}" for name, (old, new) in self.memory.items())
        return [
            f"{self.answers} answers, {self.tokens} events, KV blocks stranded: {self.stranded_blocks}, "
            f"longest silence of a stream: {self.longest_silence_seconds:.1f} s",
            f"Memory before and after, MiB: {grown}",
            "Affected: open when it happened and then silent for a second, or broken or refused by it.",
            "Came again: of those, clients that had to connect anew. Recovery: from the fault to the next token,",
            f"where no other fault came within {UNDISTURBED_SECONDS:g} s of its end.",
        ]

    def json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "streams": self.streams,
            "answers": self.answers,
            "events": self.tokens,
            "faults": [asdict(fault) | {"befell": befell} for fault, befell in self.faults],
            "table": [
                asdict(row) | {"p50_seconds": row.percentile(0.5), "p99_seconds": row.percentile(0.99)}
                for row in self.rows
            ],
            "longest_silence_seconds": self.longest_silence_seconds,
            "stranded_blocks": self.stranded_blocks,
            "memory_bytes": {name: list(sizes) for name, sizes in self.memory.items()},
            "troubles": [trouble.json() for trouble in self.troubles],
            "violations": list(self.violations),
        }
