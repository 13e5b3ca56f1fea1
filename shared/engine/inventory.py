"""What this machine is to an engine, for tools that measure it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def device_facts(device: str) -> dict[str, Any]:
    """Name, memory and software. `device`: "cpu" or "cuda"."""
    if device == "cpu":
        return {
            "name": _processor(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "count": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def gpu_of(device: str, number: int) -> int | None:
    """Of the process with this number: one GPU after the other, in turn. None on a CPU."""
    return None if device == "cpu" else number % torch.cuda.device_count()


def touched_memory(size: int, gpu: int | None) -> Any:
    """uint8 [size] that the transport can move, every page of it written: a numpy array, or a tensor on the GPU."""
    memory = torch.ones(size, dtype=torch.uint8, device="cpu" if gpu is None else f"cuda:{gpu}")
    if gpu is None:
        return memory.numpy()
    torch.cuda.synchronize(gpu)
    return memory


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
