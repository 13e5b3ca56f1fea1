"""Profiles whose times a test chooses."""

import json
from pathlib import Path

Three = tuple[float, float, float]


def write_profile(file: Path, *, prefill_ms: Three, decode_ms: Three, model: str = "demo") -> Path:
    """`prefill_ms`: of a batch, a token, a token squared. `decode_ms`: of a step, a token of context, a sequence."""
    times = {"prefill_ms": prefill_ms, "decode_small_ms": decode_ms, "decode_large_ms": decode_ms, "large_batch": 1000}
    sizes = {"layers": 4, "hidden": 64, "weight_bytes": 10**6, "kv_bytes_per_token": 2048, "max_tokens": 4096}
    profile = {
        "format": 1,
        "source": "made up for a test",
        "device": {"name": "none", "memory_bytes": 10**9, "link_gigabytes_per_second": 1.0},
        "models": {model: sizes | {"parallel": {"1": times}}},
    }
    file.write_text(json.dumps(profile))
    return file
