"""What the settings mean on this machine: device, dtype and how many KV blocks its memory holds."""

import os
import platform
from collections.abc import Collection

import torch

from shared.engine.kv_cache import bytes_per_block
from shared.engine.settings import EngineSettings
from shared.specs.model import ModelSpec
from shared.specs.settings import BadSetting

CPU_CACHE_BYTES = 512 << 20  # several instances share a machine, so each takes little unless told otherwise
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def chosen_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadSetting(f"device {name!r}: it must be cpu, cuda or cuda:<number>")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise BadSetting(f"device {name!r}: this torch ({torch.__version__}) sees no CUDA device; use cpu")
    index = device.index if device.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise BadSetting(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    for variable in ALLOCATOR_VARIABLES:
        if "expandable_segments:true" in os.environ.get(variable, "").lower():
            raise BadSetting(f"{variable} asks for expandable_segments: such memory cannot be shared through CUDA IPC")
    return torch.device("cuda", index)


def check_cores(cores: Collection[int]) -> None:
    """BadSetting if this process may not use all of them."""
    allowed = os.sched_getaffinity(0)
    if not allowed.issuperset(cores):
        raise BadSetting(f"cores {sorted(cores)}: this process may use {sorted(allowed)} only")


def chosen_dtype(name: str, device: torch.device) -> torch.dtype:
    match name:
        case "auto":
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float16":
            return torch.float16
        case _:
            raise BadSetting(f"dtype {name!r}: it must be auto, float32, bfloat16 or float16")


def computing_dtype(cache_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of weights and activations. A CPU without instructions for short floats computes them 3 to 5 times slower."""
    if device.type != "cpu" or cache_dtype == torch.float32:
        return cache_dtype
    return cache_dtype if cache_dtype == torch.bfloat16 and has_bfloat16_instructions() else torch.float32


def has_bfloat16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 itself. oneDNN emulates it on any with AVX-512."""
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_quantization(name: str, device: torch.device) -> None:
    """BadSetting if it cannot be had here."""
    if name == "none":
        return
    if device.type != "cpu":
        raise BadSetting(f"quantization {name!r} works on a CPU only: leave it out with device {device.type}")
    if not torch.backends.mkldnn.is_available():
        raise BadSetting(f"quantization {name!r} needs a torch with oneDNN, which this one ({torch.__version__}) lacks")


def cache_blocks(settings: EngineSettings, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> int:
    """How many KV blocks to make. The weights are on the device already. BadSetting if not one fits."""
    if settings.blocks is not None:
        return settings.blocks
    if settings.cache_bytes is not None:
        room = settings.cache_bytes
    elif device.type == "cpu":
        room = CPU_CACHE_BYTES
    else:
        free, _ = torch.cuda.mem_get_info(device)
        room = int(free * settings.memory_fraction)
    block_bytes = bytes_per_block(spec, settings.block_tokens, dtype)
    if room < block_bytes:
        raise BadSetting(f"{room} bytes for the KV cache hold no block of {block_bytes} bytes")
    return room // block_bytes
