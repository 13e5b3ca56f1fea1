"""Whose turn it is, and which instance gets it. Pure."""

from collections.abc import Callable

from services.scheduler.board import Board
from services.scheduler.events import Effect, SendDecode, SendPrefill
from services.scheduler.instances import Instance
from services.scheduler.waiting import NOBODY, Lines, Live


def place_waiting(board: Board, now: float) -> list[Effect]:
    """Send everybody whose turn it is, as long as somebody has room."""
    effects: list[Effect] = []
    if board.queue.requests:
        effects += _advance(board, board.queue, board.fleet.choose_first, now)
    if board.kv.requests:
        effects += _advance(board, board.kv, board.fleet.choose_decode, now)
    return effects


def _advance(board: Board, lines: Lines, choose: Callable[[Live], Instance | None], now: float) -> list[Effect]:
    """First come, first served in each line: who does not fit now holds up those behind, so that nobody starves."""
    effects: list[Effect] = []
    blocked: set[str] = set()
    while (turn := lines.first(blocked)) is not None:
        line, request = turn
        live = board.live[request]
        instance = choose(live)
        if instance is None:
            blocked.add(line)
        else:
            if live.stage == "queued":
                board.drain.left(live.context_tokens, now)
            board.leave(live)
            effects.append(send(board, live, instance, now))
    return effects


def send(board: Board, live: Live, instance: Instance, now: float) -> SendPrefill | SendDecode:
    """A request that stands in no line goes to `instance`."""
    instance.assign(live, now)
    if instance.role == "prefill":
        if len(instance.held) == 1:
            instance.pace.began(now)
        return SendPrefill(instance.id, live.request, live.attempt)
    return SendDecode(instance.id, live.request, live.attempt, None if live.source == NOBODY else live.source)
