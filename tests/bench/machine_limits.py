"""What a step could take at best on this machine: memory bandwidth and product rate, measured here and now."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from shared.specs.model import ModelSpec

STREAM_BYTES = 512 << 20  # far more than any cache keeps of it


@dataclass(frozen=True)
class Limits:
    read_bytes_per_second: float
    products_per_second: float  # multiply-and-add pairs of a large product

    @classmethod
    def measured(cls, dtype: torch.dtype) -> "Limits":
        """With the calling thread's number of computing threads."""
        stream = torch.ones(STREAM_BYTES // 4)
        reading = best_seconds(lambda: stream.sum(), 5)
        rows, inputs, outputs = 512, 1024, 4096
        x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
        multiplying = best_seconds(lambda: F.linear(x, weight), 8)
        return cls(STREAM_BYTES / reading, rows * inputs * outputs / multiplying)

    def seconds(self, spec: ModelSpec, weight_bytes: int, kv_bytes: int, rows: int, context: int, drawn: int) -> float:
        """Of a step that computes `rows` tokens over `context` tokens each and `drawn` rows of logits.

        weight_bytes, kv_bytes: of one number. Everything is read once, and read while it is computed.
        """
        layers = layer_weights(spec) * spec.layers
        head = spec.hidden_size * spec.vocab_size
        kv = spec.layers * 2 * spec.kv_heads * spec.head_dim * context * drawn
        attention = spec.layers * 2 * spec.heads * spec.head_dim * context * rows
        read = ((layers + head) * weight_bytes + kv * kv_bytes) / self.read_bytes_per_second
        return max(read, (layers * rows + head * drawn + attention) / self.products_per_second)


def layer_weights(spec: ModelSpec) -> int:
    """Of a gated layer."""
    attention = spec.hidden_size * spec.head_dim * 2 * (spec.heads + spec.kv_heads)
    return attention + 3 * spec.hidden_size * spec.intermediate_size


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    return min(times_of(work, repeats))


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    return statistics.median(times_of(work, repeats))


def times_of(work: Callable[[], object], repeats: int) -> list[float]:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times
