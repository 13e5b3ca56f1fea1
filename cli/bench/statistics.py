"""What the answers of a run add up to. Pure; a warm-up is never part of what is given here."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cli.bench.calls import Answer
from services.scheduler.planner.goodput import Promise

PERCENTILES = (50, 90, 99)
RESAMPLES = 1000
CONFIDENCE = 0.95
Interval = tuple[float, float]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles; empty without a value."""
    if not seconds:
        return {}
    found = np.percentile(seconds, PERCENTILES)
    return {
        "mean": float(np.mean(seconds)),
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, found, strict=True)},
    }


def attainment(answers: Sequence[Answer], promise: Promise) -> dict[str, float]:
    """Shares of all requests; one that failed has missed everything."""
    count = len(answers) or 1
    return {
        "ttft": sum(a.ttft is not None and not a.error and a.ttft <= promise.ttft for a in answers) / count,
        "tpot": sum(a.tpot is not None and a.tpot <= promise.tpot for a in answers) / count,
        "joint": sum(a.keeps(promise.ttft, promise.tpot) for a in answers) / count,
    }


def summary(answers: Sequence[Answer], promise: Promise) -> dict[str, Any]:
    ended = [answer for answer in answers if answer.ended]
    seconds = _seconds(answers)
    kept = [answer.keeps(promise.ttft, promise.tpot) for answer in answers]
    return {
        "requests": len(answers),
        "failed": sum(bool(answer.error) for answer in answers),
        "shorter_than_wanted": sum(answer.output_tokens < answer.call.output_tokens for answer in ended),
        "seconds": seconds,
        "attainment": attainment(answers, promise),
        "attainment_interval": interval(kept, lambda values: values.mean(axis=1)),
        "goodput": sum(kept) / seconds if seconds else 0.0,
        "requests_per_second": len(ended) / seconds if seconds else 0.0,
        "output_tokens_per_second": sum(a.output_tokens for a in ended) / seconds if seconds else 0.0,
        "ttft_s": spread([a.ttft for a in answers if a.ttft is not None]),
        "tpot_s": spread([a.tpot for a in ended if a.tpot is not None and a.output_tokens > 1]),
        "gap_s": spread([gap for a in answers for gap in a.gaps]),
        "whole_s": spread([a.last - a.call.due for a in ended if a.last is not None]),
        "late_s": spread([a.late for a in answers if a.late is not None]),
        "most_late_s": max((a.late for a in answers if a.late is not None), default=0.0),
        "prompt_tokens": float(np.mean([a.prompt_tokens for a in ended])) if ended else 0.0,
        "output_tokens": float(np.mean([a.output_tokens for a in ended])) if ended else 0.0,
    }


def interval(
    values: Sequence[float], statistic: Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"], seed: int = 0
) -> Interval | None:
    """95 % bootstrap interval of `statistic`, which gets one resample a row. None without values."""
    return percentile_interval(resampled(values, statistic, seed)) if len(values) else None


def resampled(
    values: Sequence[float], statistic: Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"], seed: int
) -> "np.ndarray[Any, Any]":
    """`statistic` of RESAMPLES draws with replacement from at least one value; the same for the same seed."""
    array = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    return statistic(array[picks])


def percentile_interval(resamples: "np.ndarray[Any, Any]") -> Interval:
    low, high = np.percentile(resamples, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def attainment_by_scale(answers: Sequence[Answer], promise: Promise, scales: Sequence[float]) -> list[float]:
    """Share that keeps both targets, were they `scale` times what they are."""
    count = len(answers) or 1
    return [sum(a.keeps(promise.ttft * s, promise.tpot * s) for a in answers) / count for s in scales]


def _seconds(answers: Sequence[Answer]) -> float:
    """From the first request that counts to the last token."""
    last = max((a.last for a in answers if a.last is not None), default=0.0)
    return max(0.0, last - min((a.call.due for a in answers), default=0.0))
