"""Builds the kernels' library, once for every state of their source. Standard library only.

    python shared/engine/cpu/library.py

builds all variants that a machine of this architecture can use: for images, which hold no compiler.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
BUILT = Path(__file__).with_name("built")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-Wno-psabi"]
BUILD_SECONDS = 120.0
X86 = platform.machine() in ("x86_64", "AMD64")
MARCH = {"avx512": ["-march=x86-64-v4"], "avx2": ["-march=x86-64-v3"]} if X86 else {"default": []}


class CannotBuild(Exception):
    """There is no library for this variant, and none can be made here; says why."""


def library(variant: str) -> Path:
    """The file, built now if there is none of this source yet."""
    digest = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, MARCH)).encode()).hexdigest()[:16]
    path = BUILT / f"{variant}-{digest}.so"
    if not path.exists():
        _build(path, MARCH[variant])
    return path


def _build(path: Path, march: list[str]) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise CannotBuild("there is no C++ compiler (g++): install one for faster steps")
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made, whole = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
            _run([compiler, *FLAGS, *march, "-c", str(SOURCE), "-o", str(made)])
            _run([compiler, "-shared", str(made), "-o", str(whole)])  # not with OpenMP: torch has loaded that
            whole.replace(path)
    except OSError as error:
        raise CannotBuild(f"{path.parent} cannot be written: {error}") from None


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except subprocess.CalledProcessError as error:
        raise CannotBuild(f"{' '.join(command)} failed: {error.stderr.strip()[:500]}") from None
    except subprocess.TimeoutExpired:
        raise CannotBuild(f"{' '.join(command)} took more than {BUILD_SECONDS:.0f} s") from None


if __name__ == "__main__":
    try:
        sys.stdout.writelines(f"{library(name)}\n" for name in MARCH)
    except CannotBuild as why:
        sys.exit(str(why))
