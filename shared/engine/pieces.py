"""What goes into a step and what comes out."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.messages.tokens import TokenLogprobs
from shared.specs.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """How to choose the next token: number len(generated) of the answer. Its noise depends on (seed, number) only."""

    sampling: Sampling
    prompt: Sequence[int]
    generated: Sequence[int]  # all answer tokens so far, those of earlier attempts included; read during the step


@dataclass(frozen=True, slots=True)
class Piece:
    """One sequence's part of a step: a whole prompt, a chunk of one, or the one token of a decode step."""

    tokens: Sequence[int]  # new token ids whose keys and values are to be written; at least one
    start: int  # position of tokens[0]: this many tokens are in the blocks already
    blocks: Sequence[int]  # block i holds positions i * block_tokens and on
    draw: Draw | None  # None: more of this sequence is to come first, nothing is drawn


@dataclass(frozen=True, slots=True)
class Drawn:
    token: int
    logprobs: TokenLogprobs | None  # as asked for by the sampling


class NonFiniteLogits(RuntimeError):
    """The model answered NaN or infinity for some pieces. Nothing was drawn; all KV of the step was written."""

    def __init__(self, pieces: Sequence[int]) -> None:
        super().__init__(f"logits are not finite for pieces {list(pieces)} of the step")
        self.pieces = tuple(pieces)  # indices into the step's pieces
