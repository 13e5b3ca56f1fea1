"""What nvidia-smi prints, as facts. Pure."""

import re
from dataclasses import dataclass

QUERY = ("--query-gpu=index,name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits")
PEER_ACCESS = ("topo", "-p2p", "r")
_ESCAPES = re.compile(r"\x1b\[\d*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    index: int
    name: str
    memory_mebibytes: int
    used_mebibytes: int
    driver: str


def gpus_in(text: str) -> list[Gpu]:
    """From the answer to QUERY."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.count(",") == 4]
    return [
        Gpu(index=int(index), name=name, memory_mebibytes=_number(total), used_mebibytes=_number(used), driver=driver)
        for index, name, total, used, driver in rows
    ]


def _number(field: str) -> int:
    """Some devices say "[N/A]"."""
    return int(field) if field.isdigit() else 0


def without_peer_access(text: str) -> list[tuple[int, int, str]]:
    """The pairs of GPUs that cannot read each other's memory, and nvidia-smi's word for why; from PEER_ACCESS.

    The matrix has an underlined row of column names, then a row per GPU: "GPU0  X  OK", its words OK, X (itself), NS.
    """
    lines = [_ESCAPES.sub("", line).split() for line in text.splitlines()]
    matrix = [words[1:] for words in lines if words and re.fullmatch(r"GPU\d+", words[0])][1:]
    return [
        (row, column, word)
        for row, words in enumerate(matrix)
        for column, word in enumerate(words)
        if column > row and word not in ("OK", "X")
    ]
