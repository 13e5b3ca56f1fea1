"""Reads the facts of this machine. Whatever cannot be read is said to be unknown, never an error."""

import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.doctor.pair_report import PairReport

PROBE_SECONDS = 60
NVIDIA_SMI_SECONDS = 20
FIRST_PID_NAMESPACE, FIRST_IPC_NAMESPACE = 0xEFFFFFFC, 0xEFFFFFFF  # what the kernel boots with (proc_ns.h)
CAP_SYS_PTRACE = 19


class ProbeFailed(Exception):
    """A probe ended badly, or said something unexpected; the text is its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonFacts:
    version: tuple[int, int]
    missing: tuple[str, ...]  # packages that the requirement files name and that are not there
    others: tuple[str, ...]  # "name 1.0 instead of 1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    cores: float  # that this process may use
    memory_bytes: int  # that are available now
    locked_memory_bytes: int | None  # that may be; None: unlimited
    open_files: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    container: bool
    own_pid_namespace: bool
    own_ipc_namespace: bool
    ptrace_scope: int | None  # of the Yama security module; None: it is not there
    may_ptrace: bool  # this process has the capability SYS_PTRACE


def read_python(root: Path) -> PythonFacts:
    pins = read_pins(root / "constraints.txt")
    files = [root / "cli" / "requirements.txt", *sorted((root / "services").glob("*/requirements.txt"))]
    needed = {name for file in files for name in requirement_names(file.read_text())}
    there = {_plain(found.metadata["Name"]): found.version for found in importlib.metadata.distributions()}
    there = {name: version.partition("+")[0] for name, version in there.items()}  # "+cpu" is another build of the same
    others = [f"{name} {there[name]} instead of {pin}" for name, pin in pins.items() if there.get(name, pin) != pin]
    return PythonFacts(
        version=sys.version_info[:2], missing=tuple(sorted(needed - there.keys())), others=tuple(sorted(others))
    )


def read_pins(file: Path) -> dict[str, str]:
    return {
        _plain(name): version
        for name, separator, version in (line.strip().partition("==") for line in file.read_text().splitlines())
        if separator and not name.startswith("#")
    }


def requirement_names(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [_plain(re.split(r"[\[<>=;\s]", line)[0]) for line in lines if line and not line.startswith("-")]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_resources() -> Resources:
    quota = _text("/sys/fs/cgroup/cpu.max").split()
    cores = float(len(os.sched_getaffinity(0)))
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return Resources(
        cores=cores,
        memory_bytes=_available_memory(),
        locked_memory_bytes=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
    )


def _available_memory() -> int:
    found = re.search(r"^MemAvailable: +(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    machine = int(found[1]) << 10 if found else 0
    most, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    return min(machine, int(most) - int(used)) if most.isdigit() and used.isdigit() else machine


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def read_isolation() -> Isolation:
    scope = _text("/proc/sys/kernel/yama/ptrace_scope").strip()
    capabilities = re.search(r"^CapEff:\s*(\w+)", _text("/proc/self/status"), re.MULTILINE)
    return Isolation(
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        own_pid_namespace=_namespace("pid") != FIRST_PID_NAMESPACE,
        own_ipc_namespace=_namespace("ipc") != FIRST_IPC_NAMESPACE,
        ptrace_scope=int(scope) if scope.isdigit() else None,
        may_ptrace=bool(capabilities and int(capabilities[1], 16) >> CAP_SYS_PTRACE & 1),
    )


def _namespace(kind: str) -> int:
    return Path(f"/proc/self/ns/{kind}").stat().st_ino


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def has_ucxx() -> bool:
    return importlib.util.find_spec("ucxx") is not None


def ucx_transports(root: Path) -> list[str]:
    """Names such as "tcp", "cma", "cuda_ipc". ProbeFailed if ucxx or UCX is broken here."""
    return json.loads(_last_line([sys.executable, "-m", "shared.transport.inventory"], root, os.environ))


def kv_pair(root: Path) -> PairReport:
    """ProbeFailed if two processes cannot even try to move KV."""
    return PairReport.from_line(_last_line([sys.executable, "-m", "cli.doctor.kv_pair"], root, os.environ))


def nvidia_smi(*arguments: str) -> str | None:
    """What it prints; None where it is not installed. ProbeFailed if it fails."""
    if shutil.which("nvidia-smi") is None:
        return None
    return _output(["nvidia-smi", *arguments], Path.cwd(), os.environ, NVIDIA_SMI_SECONDS)


def _last_line(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    return _output(command, folder, environment, PROBE_SECONDS).strip().rpartition("\n")[2]


def _output(command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    try:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"no answer within {seconds:g} s") from None
    if ended.returncode:
        words = (ended.stderr or ended.stdout).strip().rpartition("\n")[2]
        raise ProbeFailed(f"exit status {ended.returncode}: {words or 'no word'}")
    return ended.stdout
