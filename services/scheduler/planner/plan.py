"""The planner's answer as plain data: what to start, what else was weighed, and why."""

from concurrent.futures import Executor
from typing import Any

from services.scheduler.planner.explain import explain
from services.scheduler.planner.neighbours import differences
from services.scheduler.planner.question import Question
from services.scheduler.planner.search import Found, copies_for, search
from services.scheduler.simulator.placement import Group

NEARLY = 0.05  # colocated within this much of the best is worth a word: it is simpler


def make_plan(question: Question, workers: Executor) -> dict[str, Any]:
    """Search, and describe the best placement with what binds it. JSON types only."""
    result = search(question, workers)
    if not result.found:
        return {
            "format": 1,
            "placement": None,
            "table": [],
            "impossible": result.impossible,
            "searches": result.searches,
            "simulations": result.simulations,
        }
    best = result.found[0]
    reason = explain(
        question.setup(best.placement, best.policy), question.traces[0], question.promise, best.goodput.rate
    )
    units = copies_for(question.rate, best.goodput.rate)
    return {
        "format": 1,
        "model": question.model.name,
        "profile": question.profile.name,
        "rate": question.rate,
        "targets": {"ttft_s": question.promise.ttft, "tpot_s": question.promise.tpot, "share": question.promise.share},
        "placement": str(best.placement),
        "units": units,
        "gpus": units * best.placement.gpus,
        "instances": _instances(best, units, question),
        "binds": reason.binds,
        "detail": reason.detail,
        "colocated": _colocated_word(result.found),
        "published": str(result.published) if result.published else None,
        "table": [_row(found) for found in result.found],
        "neighbours": _neighbours(best, result.found),
        "impossible": result.impossible,
        "searches": result.searches,
        "simulations": result.simulations,
    }


def _row(found: Found) -> dict[str, Any]:
    return {
        "placement": found.name,
        "gpus": found.placement.gpus,
        "goodput": found.goodput.rate,
        "half_width": found.goodput.half_width,
        "per_gpu": found.per_gpu,
    }


def _instances(best: Found, units: int, question: Question) -> dict[str, Any]:
    def of(group: Group) -> dict[str, int]:
        return {"count": units * group.count, "tp": group.tp, "pp": group.pp}

    prefill, decode, policy = best.placement.prefill, best.placement.decode, best.policy
    chunked = prefill is None and policy.order == "chunked"
    computing = (prefill or decode).tp  # who prefills
    batch_tokens = policy.batch_tokens or question.model.times[computing].batch_tokens
    settings = {
        "DISTSERVE_MAX_BATCH": policy.max_batch,
        "DISTSERVE_PREFILL_BATCH_TOKENS": policy.chunk_tokens if chunked else batch_tokens,
    }
    return {
        "prefill": of(prefill) if prefill else None,
        "decode": of(decode),
        "order": None if prefill else best.policy.order,
        "settings": settings,
    }


def _colocated_word(found: list[Found]) -> str:
    """Whether disaggregation is worth it here."""
    apart = [one for one in found if one.placement.prefill is not None]
    together = [one for one in found if one.placement.prefill is None]
    if not apart or not together:
        return "nothing to compare: only one of the two serves this at all"
    gain = min(apart, key=lambda one: one.rank).per_gpu / min(together, key=lambda one: one.rank).per_gpu - 1
    if gain < 0:
        return f"colocated is better by {-gain:.0%} of its per-GPU goodput"
    if gain <= NEARLY:
        return f"colocated is within {NEARLY:.0%} ({gain:.1%}): it is the simpler choice"
    return f"disaggregated is better by {gain:.0%}"


def _neighbours(best: Found, found: list[Found]) -> list[dict[str, Any]]:
    """Those that differ from the best in a single number; best first."""
    beside = [
        one
        for one in found
        if differences(best.placement, one.placement) == 1 and one.policy.order == best.policy.order
    ]
    return [_row(one) for one in sorted(beside, key=lambda one: one.rank)]
