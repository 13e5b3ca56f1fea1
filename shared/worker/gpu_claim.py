"""An instance's own GPUs, where every instance sees all of them: a lock file each, in a folder that all have in common.

The kernel lets go of a lock when its process ends, however it ends. Works across containers of one host.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

import structlog

from shared.specs.settings import BadSetting
from shared.worker.gpu_choice import Gpus, choose, read_gpus

log = structlog.get_logger()

NVIDIA_SMI_SECONDS = 30
VISIBLE = "CUDA_VISIBLE_DEVICES"


class GpuClaim:
    """GPUs that nobody else has while this object and its process live."""

    def __init__(self, uuids: tuple[str, ...], locks: ExitStack) -> None:
        self.uuids = uuids
        self._locks = locks

    def release(self) -> None:
        self._locks.close()


def claim_gpus(folder: Path, gpus: Gpus, count: int = 1) -> GpuClaim:
    """Take `count` GPUs that are free. BadSetting says who has them if there are not so many."""
    with _open(folder / "choosing") as choosing:
        fcntl.flock(choosing, fcntl.LOCK_EX)  # one after the other: nobody takes half of what another one wants
        with ExitStack() as files:
            free = {uuid: file for uuid in gpus.uuids if _lock(file := files.enter_context(_open(folder / uuid)))}
            chosen = choose(gpus, free, count)
            if chosen is None:
                holders = {uuid: (folder / uuid).read_text() or "?" for uuid in gpus.uuids if uuid not in free}
                raise BadSetting(
                    f"{count} GPU(s) wanted and {len(free)} of {len(gpus.uuids)} free; in use: {holders or 'none'}. "
                    "Run fewer instances, or add GPUs"
                )
            locks = ExitStack()
            for uuid in chosen:
                locks.enter_context(_keep(free[uuid]))
    return GpuClaim(chosen, locks)


@contextmanager
def own_gpus(folder: Path | None, count: int = 1) -> Iterator[None]:
    """Claim GPUs of this machine and make them the only ones that CUDA shows. Before its first use in this process.

    Without a folder nothing is claimed. BadSetting says what is wrong.
    """
    if folder is None:
        yield
        return
    claim = _claim(folder, count)
    os.environ[VISIBLE] = ",".join(claim.uuids)
    log.info("gpus_claimed", gpus=claim.uuids)
    try:
        yield
    finally:
        claim.release()


def _claim(folder: Path, count: int) -> GpuClaim:
    if VISIBLE in os.environ:
        raise BadSetting(f"{VISIBLE} and DISTSERVE_GPU_CLAIM_DIR exclude each other: leave one of them out")
    try:
        listing = _nvidia_smi("--query-gpu=index,uuid", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError) as error:
        raise BadSetting(f"DISTSERVE_GPU_CLAIM_DIR is set, but nvidia-smi cannot tell the GPUs: {error}") from error
    topology = ""
    with suppress(OSError, subprocess.SubprocessError):  # no table, no preference
        topology = _nvidia_smi("topo", "-m")
    try:
        return claim_gpus(folder, read_gpus(listing, topology), count)
    except OSError as error:
        raise BadSetting(f"DISTSERVE_GPU_CLAIM_DIR={folder}: {error}") from error


def _nvidia_smi(*arguments: str) -> str:
    command = ("nvidia-smi", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)
    return done.stdout


def _open(file: Path) -> TextIO:
    return file.open("a+")


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep(file: TextIO) -> TextIO:
    """A second handle of the same lock, which outlives the first; the file says who holds it."""
    kept = os.fdopen(os.dup(file.fileno()), "a+")
    kept.truncate(0)
    kept.write(f"process {os.getpid()} of {os.uname().nodename}")
    kept.flush()
    return kept
