"""Drives an Engine alone, in one process: what the whole system's answers are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.engine.pieces import Draw, Drawn, Piece
from shared.engine.step import Engine
from shared.specs.sampling import Sampling

GREEDY = Sampling(max_tokens=1 << 20, temperature=0.0)


@dataclass(slots=True)
class Generation:
    prompt: list[int]
    sampling: Sampling
    blocks: list[int]
    generated: list[int]
    computed: int = 0
    drawn: list[Drawn] = field(default_factory=list)

    def piece(self, most_tokens: int) -> Piece:
        tokens = (self.prompt + self.generated)[self.computed :][:most_tokens]
        complete = self.computed + len(tokens) == len(self.prompt) + len(self.generated)
        draw = Draw(self.sampling, self.prompt, self.generated) if complete else None
        return Piece(tokens, self.computed, self.blocks, draw)

    def record(self, piece: Piece, drawn: Drawn | None) -> None:
        self.computed += len(piece.tokens)
        if drawn is not None:
            self.generated.append(drawn.token)
            self.drawn.append(drawn)


def begin(
    engine: Engine,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    tokens: int,
    resumed: Sequence[int] = (),
) -> list[Generation]:
    """Sequences with blocks for `tokens` more tokens each, dealt out in turn: no two blocks of one are neighbours."""
    longest = max(map(len, prompts)) + len(resumed) + tokens
    width = -(-longest // engine.block_tokens)
    assert width * len(prompts) <= engine.blocks
    return [
        Generation(prompt, sampling, list(range(i, width * len(prompts), len(prompts))), list(resumed))
        for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]


def advance(engine: Engine, generations: Sequence[Generation], chunk: int = 1 << 20) -> None:
    """One step for all."""
    pieces = [generation.piece(chunk) for generation in generations]
    for generation, piece, drawn in zip(generations, pieces, engine.step(pieces), strict=True):
        generation.record(piece, drawn)


def generate(
    engine: Engine,
    prompts: Sequence[list[int]],
    tokens: int,
    samplings: Sequence[Sampling] | None = None,
    *,
    chunk: int = 1 << 20,
    resumed: Sequence[int] = (),
) -> list[list[int]]:
    """`tokens` answer tokens for each prompt, all in the same steps; no token ends an answer.

    chunk: most tokens of one sequence in a step. resumed: answer tokens that exist already, part of the result.
    """
    generations = begin(engine, prompts, samplings or [GREEDY] * len(prompts), tokens, resumed)
    while unfinished := [g for g in generations if len(g.generated) < tokens]:
        advance(engine, unfinished, chunk)
    return [generation.generated for generation in generations]
