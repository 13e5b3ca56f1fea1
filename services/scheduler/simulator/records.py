"""What happened to every request, in columns: as few objects as possible, because there are many requests."""

import math
from dataclasses import dataclass, field

from services.scheduler.simulator.workload import Trace

NEVER = math.inf


@dataclass(slots=True)
class Records:
    """Instants in seconds, by request number; NEVER if it did not come to that."""

    trace: Trace
    prefill_at: list[float] = field(init=False)  # its (first) prefill began
    first_at: list[float] = field(init=False)  # its first token was out
    moved_from: list[float] = field(init=False)  # its KV began to move
    moved_at: list[float] = field(init=False)  # its KV was there
    decode_at: list[float] = field(init=False)  # its first decode step began
    last_at: list[float] = field(init=False)
    preemptions: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        count = len(self.trace)
        for name in ("prefill_at", "first_at", "moved_from", "moved_at", "decode_at", "last_at"):
            setattr(self, name, [NEVER] * count)
