"""When the first token of a new request would come, from what waits before it and how fast that goes. Pure."""

from services.scheduler.board import Board
from services.scheduler.instances import Instance, Work

SAFETY = 0.8  # of the time that there is: a forecast is right in the mean, and late half of the time


def seconds_to_first_token(board: Board, work: Work, now: float) -> float | None:
    """None: an instance has nothing to do and takes it at once, or nothing has been measured yet."""
    prefills = board.fleet.prefills(work.model, work.final_tokens)
    waiting_tokens = board.queue.tokens
    if not prefills:
        rate = board.drain.tokens_per_second
        return (waiting_tokens + work.context_tokens) / rate if rate and waiting_tokens else None
    known = [prefill.pace.tokens_per_second for prefill in prefills if prefill.pace.tokens_per_second]
    if not known or (not waiting_tokens and any(_tokens_left(prefill, now) == 0 for prefill in prefills)):
        return None
    mean = sum(known) / len(known)
    rates = [prefill.pace.tokens_per_second or mean for prefill in prefills]
    left = [_tokens_left(prefill, now) for prefill in prefills]
    if not waiting_tokens:
        return min((tokens + work.context_tokens) / rate for tokens, rate in zip(left, rates, strict=True))
    return (waiting_tokens + sum(left)) / sum(rates) + work.context_tokens / max(rates)


def seconds_in_line(board: Board, work: Work, now: float) -> float:
    """Until all that came before has been computed, at the rate at which the queue moves. 0: that is not known."""
    rate = board.drain.tokens_per_second
    prefills = board.fleet.prefills(work.model, work.final_tokens)
    tokens = board.queue.tokens + sum(_tokens_left(prefill, now) for prefill in prefills)
    return tokens / rate if rate else 0.0


def _tokens_left(prefill: Instance, now: float) -> float:
    """Of what it holds. While it holds something there is something left, however long that takes."""
    held = prefill.held_tokens + prefill.foreign_tokens
    return 0.0 if held == 0 else max(1.0, held - prefill.pace.done_by(now))
