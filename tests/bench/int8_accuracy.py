"""What int8 costs in accuracy: the same engine with and without it, on the same text.

    python -m tests.bench.int8_accuracy [--model FOLDER] [--dtype bfloat16]

Agreement: share of positions at which both would choose the same token, given the same text before (the exact engine's
own greedy answers). First difference: how many tokens of a free greedy answer are the same until one differs.
Perplexity: of those answers and of the prompts, as int8 divided by exact; 1 is no loss.
"""

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from cli import demo_model
from shared.engine.batch import lay_out
from shared.engine.pieces import Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from tests.bench.bench_serving import DEMO
from tests.generation import generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder (default: the demo model)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    model = options.model or DEMO
    if model == DEMO:
        demo_model.ensure(DEMO)
    exact, rounded = (
        Engine.load(EngineSettings(model=str(model), dtype=options.dtype, quantization=quantization, blocks=512))
        for quantization in ("none", "int8")
    )
    chance = random.Random(1)
    vocabulary = exact.spec.vocab_size
    prompts = [
        [chance.randrange(300, vocabulary) for _ in range(options.prompt_tokens)] for _ in range(options.prompts)
    ]
    answers = generate(exact, prompts, options.tokens)
    free = generate(rounded, prompts, options.tokens)
    same = [first_difference(one, other) for one, other in zip(answers, free, strict=True)]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    scores = [[score(engine, text) for text in texts] for engine in (exact, rounded)]
    choices = [[token for _, chosen in per_engine for token in chosen] for per_engine in scores]
    agreeing = statistics.mean(one == other for one, other in zip(*choices, strict=True))
    before, after = (math.exp(statistics.mean(loss for losses, _ in one for loss in losses)) for one in scores)
    print(f"{model.name}, {options.dtype}, {len(texts)} texts of {len(texts[0])} tokens")
    print(f"agreement of greedy tokens, same text before: {agreeing:.3f}")
    print(f"free greedy answers: the same for {statistics.median(same)} of {options.tokens} tokens (median)")
    print(f"perplexity {before:.1f} exact, {after:.1f} int8: ratio {after / before:.4f}")


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


@torch.inference_mode()
def score(engine: Engine, text: list[int]) -> tuple[list[float], list[int]]:
    """For every token but the first: minus the logarithm of its probability, and what greedy would have chosen."""
    blocks = list(range(-(-len(text) // engine.block_tokens)))
    batch = lay_out([Piece(text, 0, blocks, None)], engine.block_tokens)
    logits = engine._logits(batch, list(range(len(text))))[:-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
    return losses.tolist(), logits.argmax(dim=-1).tolist()


if __name__ == "__main__":
    main()
