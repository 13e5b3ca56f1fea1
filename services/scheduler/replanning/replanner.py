"""When to search for another layout, and whether to change to it (paper section 4.3, replanning). Pure."""

from dataclasses import dataclass

from services.scheduler.replanning.shift import Shift, ShiftDetector
from services.scheduler.traffic import Call

SAMPLE = 100  # requests that stand for the new traffic
LEAST_GAIN = 0.15  # of the goodput: below, a change is not worth its disturbance


@dataclass(frozen=True, slots=True, order=True)
class Layout:
    """Instances of one device each."""

    prefill: int
    decode: int

    @property
    def devices(self) -> int:
        return self.prefill + self.decode

    def __str__(self) -> str:
        return f"{self.prefill} prefill + {self.decode} decode"


@dataclass(frozen=True, slots=True)
class Search:
    """Find the layout that serves this traffic best."""

    calls: tuple[Call, ...]  # in order of arrival


@dataclass(frozen=True, slots=True)
class Found:
    """A layout and its goodput, requests per second."""

    layout: Layout
    goodput: float


@dataclass(frozen=True, slots=True)
class Change:
    layout: Layout
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    reason: str


class Replanner:
    """Watches; after a shift takes a sample of what came after it; then waits for what the search has found.

    One search at a time. The sample, and what is like it, is the reference of the next shift: traffic that changes
    again during the search is noticed after it.
    """

    def __init__(self) -> None:
        self._last_at = 0.0
        self._detector = ShiftDetector()
        self._watch()

    def _watch(self) -> None:
        self._shift: Shift | None = None  # noticed, and not answered yet
        self._shift_at = 0.0
        self._arrived: list[float] = []  # the first SAMPLE since the shift
        self._calls: list[Call] = []  # served since, having arrived since
        self._searching = False

    def arrived(self, at: float, input_len: int) -> Shift | None:
        """The shift, if this request gives it away."""
        self._last_at = at
        shift = self._detector.arrived(at, input_len)
        if self._shift is None:
            return self._noticed(shift)
        if not self._searching and len(self._arrived) < SAMPLE and at > self._shift_at:
            self._arrived.append(at)
        return None

    def served(self, call: Call) -> Shift | Search | None:
        shift = self._detector.answered(call.output_len)
        if self._shift is None:
            return self._noticed(shift)
        if self._searching or call.arrival_s <= self._shift_at:
            return None
        self._calls.append(call)
        if not self._sample_is_complete:
            return None
        self._searching = True
        self._detector.hold()
        return Search(tuple(sorted(self._calls, key=lambda one: one.arrival_s)))

    def searched(self, now: Layout, found: list[Found]) -> Change | Keep:
        """What the search has found, `now` among it. Nothing found: it failed."""
        assert self._shift is not None, "nobody asked"
        decision = decide(now, found)
        if isinstance(decision, Change):
            decision = Change(decision.layout, (str(self._shift), self._rate(), *decision.reasons))
        self._watch()
        self._detector.release()
        return decision

    def _noticed(self, shift: Shift | None) -> Shift | None:
        if shift is not None:
            self._shift, self._shift_at = shift, self._last_at
            self._detector = ShiftDetector()
        return shift

    @property
    def _sample_is_complete(self) -> bool:
        """The first SAMPLE to arrive have ended, but for a few; or enough of all, where many never get an answer.

        Who ends first has a short answer: a sample of these alone would be another traffic.
        """
        if len(self._calls) >= 2 * SAMPLE:
            return True
        if len(self._arrived) < SAMPLE:
            return False
        return sum(call.arrival_s <= self._arrived[-1] for call in self._calls) >= 0.95 * SAMPLE

    def _rate(self) -> str:
        span = max(call.arrival_s for call in self._calls) - min(call.arrival_s for call in self._calls)
        prompt, answer = (
            sum(lengths) / len(self._calls)
            for lengths in zip(*((call.input_len, call.output_len) for call in self._calls), strict=True)
        )
        rate = f"{(len(self._calls) - 1) / span:.3g} requests/s" if span else "requests at one instant"
        return f"now {rate} with {prompt:.0f} tokens and answers of {answer:.0f} on average"


def decide(now: Layout, found: list[Found]) -> Change | Keep:
    """Change only for LEAST_GAIN more goodput than `now` is predicted on the same traffic. Ties: what differs least."""
    goodput = {one.layout: one.goodput for one in found}
    if now not in goodput:
        return Keep("the search did not end")
    best = min(found, key=lambda one: (-round(one.goodput, 4), abs(one.layout.prefill - now.prefill), one.layout))
    if best.goodput <= 0:
        return Keep("no layout keeps the targets with this traffic")
    if best.goodput < (1 + LEAST_GAIN) * goodput[now]:
        return Keep(f"{best.layout} would serve {best.goodput:.3g} requests/s, {now} {goodput[now]:.3g}: not worth it")
    more = f", {best.goodput / goodput[now] - 1:.0%} more" if goodput[now] else ""
    reason = f"{best.layout} serves {best.goodput:.3g} requests/s within the targets, {now} {goodput[now]:.3g}{more}"
    return Change(best.layout, (reason,))
