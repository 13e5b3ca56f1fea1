"""What was measured: the model's facts, and the fit in the paper's own form."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.engine.step import Engine
    from shared.specs.model import ModelSpec

STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def model_facts(folder: Path, engine: "Engine") -> dict[str, Any]:
    """Sizes, as the simulator wants them, and what the model is."""
    spec = engine.spec
    number = STORED_BYTES[_dtype(engine)]
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "layers": spec.layers,
        "hidden": spec.hidden_size,
        "weight_bytes": stored * number // STORED_BYTES.get(spec.dtype, number),
        "kv_bytes_per_token": engine.cache.block_bytes // engine.block_tokens,
        "max_tokens": engine.max_model_tokens,
        "facts": {
            "architecture": spec.architecture,
            "dtype": _dtype(engine),
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "intermediate": spec.intermediate_size,
            "vocabulary": spec.vocab_size,
            "kv_block_bytes": engine.cache.block_bytes,
            "kv_block_tokens": engine.block_tokens,
        },
    }


def appendix_a(spec: "ModelSpec", prefill: list[float], decode: list[float]) -> dict[str, Any]:
    """The same fit as the paper's appendix A writes it: milliseconds of one layer.

    Prefill C1 (4 t h^2 + 2 t h m) + C2 3 h t2 + C3, decode C4 (4 h^2 + 2 h m) + C5 3 h t + C6 batch. t: tokens, t2: the
    sum of their squares by request, m: the MLP's size. C2 has the kernel's block size in it. C6 is not in the paper:
    without it decode steps do not fit. C4 holds the constant, and so what an engine adds to every step.
    """
    layers, h, m = spec.layers, spec.hidden_size, spec.intermediate_size
    products = 4 * h * h + 2 * h * m
    a, b, c = (value / layers for value in prefill)
    constant, per_context, per_request = (value / layers for value in decode)
    return {
        "unit": "milliseconds of one layer",
        "h": h,
        "m": m,
        "C1": b / products,
        "C2": c / (3 * h),
        "C3": a,
        "C4": constant / products,
        "C5": per_context / (3 * h),
        "C6": per_request,
    }


def _dtype(engine: "Engine") -> str:
    return str(engine.cache.pool.dtype).removeprefix("torch.")
