"""What a person decides about an engine."""

from dataclasses import dataclass
from typing import Literal

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    model: str  # a folder, or a Hugging Face hub id
    device: str = "cpu"  # "cpu", "cuda" or "cuda:<number>"
    dtype: DtypeName = "auto"  # of weights, activations and cache; auto: float32 on a CPU, bfloat16 on a GPU
    quantization: Quantization = "none"  # int8: weights and activations of the linear layers, on a CPU only
    blocks: int | None = None  # KV blocks; None: as many as the memory below holds
    cache_bytes: int | None = None  # memory for KV blocks; None: 512 MiB on a CPU, memory_fraction on a GPU
    memory_fraction: float = 0.85  # of the GPU memory that is free once the weights are there
    block_tokens: int = 16
    max_model_tokens: int | None = None  # longest sequence; None: the model's limit, or what the cache holds if less
    threads: int = 0  # for the computation on a CPU; 0: one per core
    cores: tuple[int, ...] = ()  # that the computing threads stay on; none: the kernel chooses
    decode_batch: int = 0  # sequences of the largest decode step to capture as a CUDA graph; 0: none
