"""When has the traffic become another one? A statistical test over sliding windows. Pure.

Three streams are watched: the gaps between arrivals, the lengths of prompts, the lengths of answers. The first 1000
values of a stream since the last restart are its reference: the traffic that the present layout was made for. Every 10
values the last 100, every 40 the last 400 are compared with it by the two-sample Kolmogorov-Smirnov test: the largest
distance D between the two empirical distribution functions. It needs no law of lengths, and no unit: logarithms would
change nothing. (While the reference still grows, values of the window are not in it.)

The rule: the traffic has shifted if D * sqrt(n * m / (n + m)) > sqrt(-ln(a / 2) / 2), n and m being the sizes of the
two samples and `a` the level of one test. P(a false alarm in 10 000 requests) is at most the sum of the levels of all
tests in them, however they depend on each other (Bonferroni): a = 0.01 / (3 streams * (1000 + 250) tests) = 2.7e-6
keeps it below 1 %. This holds for independent values of unchanged law. With that level and a full reference, D must
exceed 0.27 in the short window, 0.15 in the long one: what moves less is no shift.
"""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WINDOWS = {100: 10, 400: 40}  # values compared with the reference: values between two tests
MOST_REFERENCE = 1000
LEAST_REFERENCE = 50
LATEST = 20
STREAMS = ("gaps", "prompts", "answers")
FALSE_ALARMS = 0.01  # at most, in HORIZON requests
HORIZON = 10_000
LEVEL = FALSE_ALARMS / (len(STREAMS) * sum(HORIZON / every for every in WINDOWS.values()))

StreamName = Literal["gaps", "prompts", "answers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """What gave the change away."""

    stream: StreamName
    window: int  # values compared with the reference
    distance: float
    limit: float
    median_before: float
    median_now: float  # of the latest: half of the window may be of before

    def __str__(self) -> str:
        what = {"gaps": "gaps between arrivals", "prompts": "lengths of prompts", "answers": "lengths of answers"}
        before, now = f"{self.median_before:.4g}", f"{self.median_now:.4g}"
        tested = f"distance {self.distance:.2f} > {self.limit:.2f} over the last {self.window}"
        return f"{what[self.stream]} have changed: median {before} before, {now} now ({tested})"


class ShiftDetector:
    """Told of every arrival and every end; says when one of them shows a shift."""

    def __init__(self) -> None:
        self._last_at: float | None = None
        self._gaps, self._prompts, self._answers = (_Stream(name) for name in ("gaps", "prompts", "answers"))

    def arrived(self, at: float, input_len: int) -> Shift | None:
        gap = None if self._last_at is None else max(0.0, at - self._last_at)
        self._last_at = at
        shift = self._prompts.take(input_len)
        if gap is not None:
            shift = self._gaps.take(gap) or shift
        return shift

    def answered(self, output_len: int) -> Shift | None:
        return self._answers.take(output_len)

    def hold(self) -> None:
        """Until `release` the reference is what came until now: a layout is sought for that."""
        for stream in (self._gaps, self._prompts, self._answers):
            stream.hold()

    def release(self) -> None:
        """What came since `hold` is compared with the reference before it may join it."""
        for stream in (self._gaps, self._prompts, self._answers):
            stream.release()


class _Stream:
    def __init__(self, name: StreamName) -> None:
        self._name: StreamName = name
        self._count = 0
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=max(WINDOWS))
        self._reference: list[float] = []  # the last one that was used, in order
        self._most = MOST_REFERENCE  # values of the reference
        self._grows_at: int | None = None

    def hold(self) -> None:
        self._most, self._grows_at = min(self._count, MOST_REFERENCE), None

    def release(self) -> None:
        self._grows_at = self._count + min(WINDOWS)

    def take(self, value: float) -> Shift | None:
        self._count += 1
        self._recent.append(value)
        if len(self._first) < MOST_REFERENCE:
            self._first.append(value)
        shifts = (self._test(window) for window, every in WINDOWS.items() if self._count % every == 0)
        return next((shift for shift in shifts if shift is not None), None)

    def _test(self, window: int) -> Shift | None:
        if self._grows_at is not None and self._count >= self._grows_at:
            self._most, self._grows_at = MOST_REFERENCE, None
        before = min(self._most, self._count - window)
        if before < LEAST_REFERENCE:
            return None
        reference = self._sorted_reference(before)
        now = sorted(list(self._recent)[-window:])
        limit = least_distance(len(reference), len(now))
        found = distance(reference, now)
        if found <= limit:
            return None
        return Shift(
            stream=self._name,
            window=window,
            distance=found,
            limit=limit,
            median_before=reference[before // 2],
            median_now=sorted(list(self._recent)[-LATEST:])[LATEST // 2],
        )

    def _sorted_reference(self, count: int) -> list[float]:
        if len(self._reference) != count:
            self._reference = sorted(self._first[:count])
        return self._reference


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference of the two empirical distribution functions. Both samples sorted."""
    n, m = len(one), len(other)
    most, index = 0.0, 0
    while index < m:  # between two values of `other` its function is flat: just before and at each is enough
        value, after = other[index], bisect_right(other, other[index], index)
        most = max(most, abs(bisect_left(one, value) / n - index / m), abs(bisect_right(one, value) / n - after / m))
        index = after
    return most


def least_distance(n: int, m: int) -> float:
    """What two samples of one law exceed with probability LEVEL at most."""
    return math.sqrt(-math.log(LEVEL / 2) / 2 * (n + m) / (n * m))
