"""Which instances there are: "2x tp2,pp1 + 1x tp1,pp1" (prefill + decode) or "2x tp1,pp1 colocated"."""

import re
from dataclasses import dataclass

MOST_INSTANCES = 1024  # of a shape
_GROUP = re.compile(r"(?:(\d+)\s*x\s*)?tp(\d+)(?:\s*,\s*pp(\d+))?")


class BadPlacement(ValueError):
    """A placement that cannot be read or cannot be; the text says why."""


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """`count` instances of one shape."""

    count: int
    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        return self.count * self.tp * self.pp

    def __str__(self) -> str:
        return f"{self.count}x tp{self.tp},pp{self.pp}"


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: Group | None  # None: the decode instances prefill as well
    decode: Group

    @property
    def gpus(self) -> int:
        return self.decode.gpus + (self.prefill.gpus if self.prefill else 0)

    def __str__(self) -> str:
        return f"{self.prefill} + {self.decode}" if self.prefill else f"{self.decode} colocated"


def parse_placement(text: str) -> Placement:
    plain = text.strip().lower()
    if plain.endswith("colocated"):
        return Placement(None, _group(plain.removesuffix("colocated"), text))
    parts = plain.split("+")
    if len(parts) != 2:
        raise BadPlacement(f'{text!r}: wanted "2x tp2,pp1 + 1x tp1,pp1" or "2x tp1,pp1 colocated"')
    return Placement(_group(parts[0], text), _group(parts[1], text))


def _group(text: str, whole: str) -> Group:
    found = _GROUP.fullmatch(text.strip())
    if found is None:
        raise BadPlacement(f"{whole!r}: {text.strip()!r} is not like 2x tp2,pp1")
    count, tp, pp = (int(number or 1) for number in found.groups())
    if min(count, tp, pp) < 1:
        raise BadPlacement(f"{whole!r}: every number must be at least 1")
    if count > MOST_INSTANCES:
        raise BadPlacement(f"{whole!r}: more than {MOST_INSTANCES} instances are not simulated")
    return Group(count, tp, pp)
