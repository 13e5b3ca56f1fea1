"""Times the engine of this machine over batch sizes and lengths."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.engine.pieces import Draw, Piece
from shared.kv.layout import blocks_for
from shared.specs.sampling import Sampling

if TYPE_CHECKING:
    from shared.engine.step import Engine

GREEDY = Sampling(max_tokens=1 << 20, temperature=0.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (16, 64, 128, 256, 512, 1024, 2048)
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Point:
    batch: int
    length: int  # of each prompt or context
    milliseconds: float


def grid(engine: "Engine", most_tokens: int) -> list[tuple[int, int]]:
    """(batch, length) that the cache and the model hold, with at most `most_tokens` in a step."""
    return [
        (batch, length)
        for batch in BATCHES
        for length in LENGTHS
        if length + ROUNDS + 2 <= engine.max_model_tokens
        and batch * blocks_for(length + ROUNDS + 2, engine.block_tokens) <= engine.blocks
        and batch * length <= most_tokens
    ]


def prefill_points(engine: "Engine", most_tokens: int, done: Callable[[], None]) -> Iterator[Point]:
    for batch, length in grid(engine, most_tokens):
        pieces = [_piece(engine, number, 0, length, length) for number in range(batch)]
        yield Point(batch, length, _median(lambda pieces=pieces: engine.step(pieces)))
        done()


def decode_points(engine: "Engine", most_tokens: int, done: Callable[[], None]) -> Iterator[Point]:
    """Steps of one token on contexts whose KV is written before."""
    for batch, length in grid(engine, most_tokens):
        for number in range(batch):
            engine.step([_piece(engine, number, 0, length, length)])
        pieces = [_piece(engine, number, length, 1, length + 1) for number in range(batch)]
        yield Point(batch, length, _median(lambda pieces=pieces: engine.step(pieces)))
        done()


def _median(step: Callable[[], object]) -> float:
    step()  # warms up
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def _piece(engine: "Engine", number: int, start: int, count: int, length: int) -> Piece:
    each = blocks_for(length, engine.block_tokens)
    tokens = [(7 * position + number) % engine.spec.vocab_size for position in range(length)]
    blocks = range(number * each, (number + 1) * each)
    return Piece(tokens=tokens[start : start + count], start=start, blocks=blocks, draw=Draw(GREEDY, tokens, ()))
