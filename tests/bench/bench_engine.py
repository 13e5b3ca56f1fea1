"""How fast the engine is alone: decode steps at several batch sizes and one prefill, in milliseconds.

    python -m tests.bench.bench_engine [--model FOLDER] [--device cpu] [--dtype auto] [--threads 1]

Without --model: a random Llama of hidden 256, 6 layers, 8 heads, 4 KV heads, MLP 1024, vocabulary 8192.
On a CPU a Llama is compared, in the same run, with a plain torch loop with a static cache in the same dtype (`plain`:
its median over the engine's, more is better), and with what this machine could do (`of limit`: memory bandwidth or
product rate, whichever binds, over the engine's median; 100 % is the limit). The limit of int8 is not measured.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.engine.device import computing_dtype
from shared.engine.pieces import Draw, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.model import ModelSpec
from shared.specs.sampling import Sampling
from tests.bench.machine_limits import Limits, median_seconds
from tests.bench.plain_loop import PlainLoop
from tests.models import make_model

GREEDY = Sampling(max_tokens=1 << 20, temperature=0.0)
SAMPLED = Sampling(max_tokens=1 << 20, temperature=0.8, top_p=0.95, top_k=50, seed=1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder (default: a random Llama of demo size)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="none")
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
            model=str(folder),
            device=options.device,
            dtype=options.dtype,
            quantization=options.quantization,
            threads=options.threads,
        )
        started = time.perf_counter()
        engine = Engine.load(settings)
        print(f"loaded in {time.perf_counter() - started:.2f} s; {engine.kv_format}, {engine.blocks} blocks")
        engine.use_threads()
        comparison = Comparison.on_this_cpu(engine, folder, options) if options.device == "cpu" else None
    for tokens in options.prefills:
        seconds = time_prefill(engine, tokens, max(3, options.steps // 10))
        report(f"prefill {tokens} tokens", seconds, tokens, comparison and comparison.of_prefill(tokens, seconds))
    for name, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
        for batch in options.batches:
            seconds = time_decode(engine, batch, options.context, options.steps, sampling)
            compared = comparison.of_decode(batch, options.context, seconds) if comparison and name == "greedy" else ""
            report(f"decode {batch} x context {options.context}, {name}", seconds, batch, compared)


@dataclass(frozen=True)
class Comparison:
    """What else could be done on this machine with this model."""

    spec: ModelSpec
    plain: PlainLoop | None  # None: not a Llama
    limits: Limits
    weight_bytes: int  # of one weight, and of one number in the cache
    kv_bytes: int
    repeats: int

    @classmethod
    def on_this_cpu(cls, engine: Engine, folder: Path, options: argparse.Namespace) -> "Comparison":
        spec, kv_dtype = engine.spec, engine.cache.pool.dtype
        dtype = computing_dtype(kv_dtype, engine.cache.pool.device)
        limits = Limits.measured(dtype)
        print(
            f"limits with {torch.get_num_threads()} threads, {dtype}: memory {limits.read_bytes_per_second / 1e9:.1f} "
            f"GB/s, products {2 * limits.products_per_second / 1e9:.0f} GFLOP/s"
        )
        longest = max(*options.prefills, options.context + 1)
        llama = spec.architecture == "LlamaForCausalLM"
        plain = PlainLoop(folder, spec, kv_dtype, max(options.batches), longest) if llama else None
        weight_bytes = 1 if options.quantization == "int8" else dtype.itemsize
        return cls(spec, plain, limits, weight_bytes, kv_dtype.itemsize, max(3, options.steps // 10))

    def of_prefill(self, tokens: int, seconds: list[float]) -> str:
        limit = self.limits.seconds(self.spec, self.weight_bytes, self.kv_bytes, tokens, tokens // 2, 1)
        return self._against(torch.zeros(1, tokens, dtype=torch.int64), 0, limit, seconds)

    def of_decode(self, batch: int, context: int, seconds: list[float]) -> str:
        limit = self.limits.seconds(self.spec, self.weight_bytes, self.kv_bytes, batch, context, batch)
        return self._against(torch.zeros(batch, 1, dtype=torch.int64), context, limit, seconds)

    def _against(self, tokens: torch.Tensor, start: int, limit: float, seconds: list[float]) -> str:
        median = statistics.median(seconds)
        told = f"{100 * limit / median:4.0f} % of limit"
        if self.plain is None:
            return told
        plain = self.plain
        return f"{told}, plain {median_seconds(lambda: plain.step(tokens, start), self.repeats) / median:.2f}x"


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


def report(what: str, seconds: list[float], tokens: int, compared: str | None) -> None:
    median, best = statistics.median(seconds), min(seconds)
    timing = f"median {median * 1e3:8.2f} ms, best {best * 1e3:8.2f} ms, {tokens / median:8.0f} tokens/s"
    print(f"{what:40s} {timing}  {compared or ''}")


if __name__ == "__main__":
    main()
