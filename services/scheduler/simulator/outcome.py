"""What a simulation says: shares of kept promises, percentiles, where the time went, how full everything was."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.scheduler.simulator.decode import DecodeInstance
from services.scheduler.simulator.placement import Placement
from services.scheduler.simulator.prefill import PrefillInstance
from services.scheduler.simulator.records import Records
from services.scheduler.simulator.world import Seen

STAGES = ("prefill_queue", "prefill", "transfer", "decode_queue", "decode")
PERCENTILES = (50, 90, 99)


Seconds = NDArray[np.float64]


class Attained:
    """TTFT and TPOT of every request, seconds; what never happened is infinite."""

    def __init__(self, ttft: Seconds, tpot: Seconds) -> None:
        self.ttft, self.tpot = ttft, tpot

    def attainment(self, ttft_seconds: float, tpot_seconds: float) -> dict[str, float]:
        """Shares of all requests; a refused one has missed everything."""
        in_time, steady = self.ttft <= ttft_seconds, self.tpot <= tpot_seconds
        joint = in_time & steady
        return {"ttft": float(in_time.mean()), "tpot": float(steady.mean()), "joint": float(joint.mean())}


class Outcome(Attained):
    """What happened to every request, and how full everything was."""

    def __init__(
        self,
        records: Records,
        placement: Placement,
        samples: list[tuple[float, int, list[Seen]]],
        prefills: list[PrefillInstance],
        decodes: list[DecodeInstance],
    ) -> None:
        self.placement, self.samples = placement, samples
        self._records, self.prefills, self.decodes = records, prefills, decodes
        arrivals, first = np.array(records.trace.arrivals), np.array(records.first_at)
        last, steps = np.array(records.last_at), np.array(records.trace.outputs) - 1
        self.ended = np.isfinite(last)
        self.seconds = float(last[self.ended].max(initial=0.0))
        tpot = np.full(len(steps), np.inf)
        tpot[self.ended] = (last - np.where(self.ended, first, 0.0))[self.ended] / np.maximum(1, steps[self.ended])
        super().__init__(first - arrivals, tpot)

    def summary(self) -> dict[str, Any]:
        ended = self.ended
        return {
            "requests": len(ended),
            "refused": self._records.refused,
            "preemptions": self._records.preemptions,
            "makespan_s": self.seconds,
            "ttft_s": spread_of(self.ttft[np.isfinite(self.ttft)]),
            "tpot_s": spread_of(self.tpot[ended]),
            "stages": self._stages(),
            "utilisation": self._utilisation(),
        }

    def _stages(self) -> dict[str, dict[str, float]]:
        """Mean seconds and share of the total time that ended requests spent in each stage of the paper."""
        r, ended = self._records, self.ended
        columns = (r.trace.arrivals, r.prefill_at, r.first_at, r.moved_from, r.moved_at, r.last_at)
        arrival, began, first, moved_from, moved_at, last = (np.array(c)[ended] for c in columns)
        moved = np.isfinite(moved_at)
        move = np.zeros(len(first))
        move[moved] = moved_at[moved] - moved_from[moved]
        decode_at = np.array(r.decode_at)[ended]
        begun = np.where(np.isfinite(decode_at), decode_at, last)
        times = (began - arrival, first - began, move, np.maximum(0.0, begun - first - move), last - begun)
        total = sum(float(t.sum()) for t in times) or 1.0
        return {
            stage: {"mean_s": float(t.mean()) if len(t) else 0.0, "share": float(t.sum()) / total}
            for stage, t in zip(STAGES, times, strict=True)
        }

    def _utilisation(self) -> dict[str, float]:
        seconds = self.seconds or 1.0
        shares = {"decode": sum(d.busy_seconds for d in self.decodes) / len(self.decodes) / seconds}
        if self.prefills:
            shares["prefill"] = sum(p.busy_seconds for p in self.prefills) / len(self.prefills) / seconds
        shares["decode_kv_peak"] = self._kv_peak(self.decodes, len(self.prefills))
        if self.prefills:
            shares["prefill_kv_peak"] = self._kv_peak(self.prefills, 0)
        return shares

    def _kv_peak(self, instances: list[DecodeInstance] | list[PrefillInstance], first: int) -> float:
        """The fullest that any of them was seen, as a share of its blocks."""
        blocks = instances[0].capacity.blocks
        loads = (load for _, _, all_loads in self.samples for load in all_loads[first : first + len(instances)])
        return max((1 - load.free_blocks / blocks for load in loads), default=0.0)


def spread_of(values: Seconds) -> dict[str, float]:
    if not len(values):
        return {}
    found = {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}
    return {"mean": float(values.mean()), **found}
