"""Which GPUs to take of those that are free. Pure: what nvidia-smi said is given."""

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

# nvidia-smi's words for the way between two GPUs, nearest first. NV<n> is n NVLinks, nearer than all of them.
_WAYS = ("PIX", "PXB", "PHB", "NODE", "SYS")  # one PCIe switch; several; a host bridge; a NUMA node; between nodes
_FAR = 1000 * (len(_WAYS) + 1)
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Gpus:
    """The GPUs of this machine by UUID, in nvidia-smi's order. Pairs without a distance count as equally far."""

    uuids: tuple[str, ...]
    distances: Mapping[frozenset[str], int] = field(default_factory=dict)

    def between(self, one: str, other: str) -> int:
        return self.distances.get(frozenset((one, other)), _FAR)


def read_gpus(listing: str, topology: str) -> Gpus:
    """From `nvidia-smi --query-gpu=index,uuid --format=csv,noheader` and `nvidia-smi topo -m`, which may be ""."""
    names = [line.partition(",") for line in listing.splitlines() if "," in line]
    uuids = {f"GPU{index.strip()}": uuid.strip() for index, _, uuid in names}
    rows = [[cell.strip() for cell in line.split("\t")] for line in _COLORS.sub("", topology).splitlines()]
    header = next((row for row in rows if "GPU0" in row[1:]), [])
    distances = {
        frozenset((uuids[row[0]], uuids[column])): _distance(way)
        for row in rows
        for column, way in zip(header[1:], row[1:], strict=False)
        if row[0] in uuids and column in uuids and row[0] != column
    }
    return Gpus(tuple(uuids.values()), distances)


def choose(gpus: Gpus, free: Collection[str], count: int) -> tuple[str, ...] | None:
    """`count` of the free GPUs, in nvidia-smi's order: nearest to each other, then to those in use, then first ones.

    None if there are not so many. Looks at every combination: 12870 at most for 16 GPUs.
    """
    taken = [uuid for uuid in gpus.uuids if uuid not in free]

    def remoteness(chosen: tuple[str, ...]) -> tuple[int, int]:
        inner = sum(gpus.between(*pair) for pair in itertools.combinations(chosen, 2))
        return inner, sum(gpus.between(one, other) for one in chosen for other in taken)

    combinations = itertools.combinations([uuid for uuid in gpus.uuids if uuid in free], count)
    return min(combinations, key=remoteness, default=None)  # the first of equals


def _distance(way: str) -> int:
    if way.startswith("NV") and way[2:].isdigit():
        return 1000 - min(int(way[2:]), 999)
    return 1000 * (1 + _WAYS.index(way)) if way in _WAYS else _FAR
