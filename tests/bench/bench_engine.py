"""How fast the engine is alone: decode steps at several batch sizes and one prefill, in milliseconds.

    python -m tests.bench.bench_engine [--model FOLDER] [--device cpu] [--dtype auto] [--threads 1]

Without --model: a random Llama of hidden 256, 6 layers, 8 heads, 4 KV heads, MLP 1024, vocabulary 8192.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shared.engine.pieces import Draw, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.sampling import Sampling
from tests.models import make_model

GREEDY = Sampling(max_tokens=1 << 20, temperature=0.0)
SAMPLED = Sampling(max_tokens=1 << 20, temperature=0.8, top_p=0.95, top_k=50, seed=1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder (default: a random Llama of demo size)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--context", type=int, default=256, help="tokens in each sequence when decoding begins")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prefills", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--steps", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or demo_sized_model(Path(scratch))
        settings = EngineSettings(
            model=str(folder), device=options.device, dtype=options.dtype, threads=options.threads
        )
        started = time.perf_counter()
        engine = Engine.load(settings)
        print(f"loaded in {time.perf_counter() - started:.2f} s; {engine.kv_format}, {engine.blocks} blocks")
    engine.use_threads()
    for tokens in options.prefills:
        report(f"prefill {tokens} tokens", time_prefill(engine, tokens, max(3, options.steps // 10)), tokens)
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        for batch in options.batches:
            seconds = time_decode(engine, batch, options.context, options.steps, sampling)
            report(f"decode {batch} x context {options.context}, {name}", seconds, batch)


def demo_sized_model(folder: Path) -> Path:
    return make_model(
        "llama",
        folder,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1024,
        vocab_size=8192,
        max_position_embeddings=4096,
    )


def time_prefill(engine: Engine, tokens: int, repeats: int) -> list[float]:
    piece = Piece(prompt(engine, tokens), 0, block_table(engine, 0, tokens), Draw(GREEDY, [], []))
    return [seconds_of(engine, [piece]) for _ in range(repeats)]


def time_decode(engine: Engine, batch: int, context: int, steps: int, sampling: Sampling) -> list[float]:
    """Each sequence decodes `steps` tokens after `context`; the zeroed cache is as good a context as any."""
    tokens = prompt(engine, context)
    tables = [block_table(engine, number, context + steps) for number in range(batch)]
    times = []
    for step in range(steps):
        pieces = [
            Piece([tokens[-1]], context + step - 1, table, Draw(sampling, tokens, range(step))) for table in tables
        ]
        times.append(seconds_of(engine, pieces))
    return times


def seconds_of(engine: Engine, pieces: Sequence[Piece]) -> float:
    started = time.perf_counter()
    engine.step(pieces)
    return time.perf_counter() - started


def prompt(engine: Engine, tokens: int) -> list[int]:
    return [(31 * i + 7) % engine.spec.vocab_size for i in range(tokens)]


def block_table(engine: Engine, number: int, tokens: int) -> list[int]:
    blocks = -(-tokens // engine.block_tokens)
    assert (number + 1) * blocks <= engine.blocks, "the cache is too small for this batch"
    return list(range(number * blocks, (number + 1) * blocks))


def report(what: str, seconds: list[float], tokens: int) -> None:
    median, best = statistics.median(seconds), min(seconds)
    print(f"{what:40s} median {median * 1e3:8.2f} ms, best {best * 1e3:8.2f} ms, {tokens / median:8.0f} tokens/s")


if __name__ == "__main__":
    main()
