"""What `kv_pair` found. Apart from it, for whoever reads it needs no UCX."""

from dataclasses import dataclass

import msgspec

from shared.messages.instances import Link


@dataclass(frozen=True, slots=True)
class PairReport:
    link: Link
    memory_access: str  # what reading the other process's memory gives: "", or the name of the error
    copy_gigabytes_per_second: float

    @classmethod
    def from_line(cls, line: str) -> "PairReport":
        return msgspec.json.decode(line, type=cls)

    def line(self) -> str:
        return msgspec.json.encode(self).decode()
