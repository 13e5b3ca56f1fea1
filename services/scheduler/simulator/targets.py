"""The promises of a service, and when it is clear that too many are broken."""

from dataclasses import dataclass

from services.scheduler.simulator.records import Records


@dataclass(slots=True)
class Targets:
    """TTFT and TPOT in seconds; `allowed` is how many requests may miss them."""

    ttft: float
    tpot: float
    allowed: int
    missed: int = 0

    @property
    def lost(self) -> bool:
        return self.missed > self.allowed

    def ended(self, request: int, records: Records) -> None:
        trace = records.trace
        first = records.first_at[request]
        steps = trace.outputs[request] - 1
        late = first - trace.arrivals[request] > self.ttft
        if late or (steps and (records.last_at[request] - first) / steps > self.tpot):
            self.missed += 1
