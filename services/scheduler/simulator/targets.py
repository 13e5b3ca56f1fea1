"""The promises of a service, and when it is clear whether they are kept."""

from dataclasses import dataclass

from services.scheduler.simulator.records import Records


@dataclass(slots=True)
class Targets:
    """TTFT and TPOT in seconds; `allowed` is how many requests may miss them."""

    ttft: float
    tpot: float
    allowed: int
    missed: int = 0
    kept: int = 0
    decided: bool = False  # whatever is still to come

    @property
    def lost(self) -> bool:
        return self.missed > self.allowed

    def first_token(self, request: int, records: Records) -> None:
        if self._late(request, records):
            self.miss()

    def ended(self, request: int, records: Records) -> None:
        if self._late(request, records):
            return  # counted already
        trace = records.trace
        steps = trace.outputs[request] - 1
        if steps and (records.last_at[request] - records.first_at[request]) / steps > self.tpot:
            self.miss()
            return
        self.kept += 1
        self.decided = self.decided or self.kept >= len(trace) - self.allowed

    def miss(self) -> None:
        self.missed += 1
        self.decided = self.missed > self.allowed

    def _late(self, request: int, records: Records) -> bool:
        return records.first_at[request] - records.trace.arrivals[request] > self.ttft
