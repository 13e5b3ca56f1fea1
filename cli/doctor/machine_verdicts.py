"""What the facts of this machine mean. Pure."""

from collections.abc import Sequence

from cli.doctor.findings import Finding, ok, problem, warning
from cli.doctor.gpus import Gpu
from cli.doctor.machine import Isolation, PythonFacts, Resources
from cli.doctor.pair_report import PairReport

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
FEW_CORES = 4
LITTLE_MEMORY_BYTES = 2 << 30
FEW_OPEN_FILES = 4096 + 256  # the gateway's DISTSERVE_MAX_REQUESTS, and what else it has open
SHOWN = 5
GIB = 1 << 30


def judge_python(facts: PythonFacts) -> list[Finding]:
    version = ".".join(map(str, facts.version))
    if not OLDEST_PYTHON <= facts.version <= NEWEST_PYTHON:
        return [problem("python", f"{version}", "use Python 3.11 to 3.13: remove .venv and start ./distserve with it")]
    found = [ok("python", version)]
    renew = "remove .venv and start ./distserve again: it is made anew"
    if facts.missing:
        found.append(problem("packages", f"missing: {_some(facts.missing)}", renew))
    if facts.others:
        found.append(warning("packages", f"not the tested versions: {_some(facts.others)}", renew))
    if not facts.missing and not facts.others:
        found.append(ok("packages", "all there, in the versions of constraints.txt"))
    return found


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def judge_resources(facts: Resources, gpus: int) -> list[Finding]:
    cores, memory = f"{facts.cores:g} to use", f"{facts.memory_bytes / GIB:.1f} GiB available"
    return [
        warning("cores", cores, "enough to try it; engines on the CPU and four services share them: expect slow steps")
        if facts.cores < FEW_CORES
        else ok("cores", cores),
        warning("memory", memory, "free some, or limit the KV cache with --kv-blocks")
        if facts.memory_bytes < LITTLE_MEMORY_BYTES
        else ok("memory", memory),
        _judge_locked_memory(facts.locked_memory_bytes, gpus),
        _judge_open_files(facts.open_files),
    ]


def _judge_locked_memory(limit: int | None, gpus: int) -> Finding:
    if limit is None:
        return ok("memlock", "unlimited")
    shown = f"{limit >> 10} KiB may be locked"
    if gpus:
        return warning(
            "memlock", shown, "RDMA registers memory by locking it: ulimit -l unlimited, in compose memlock: -1"
        )
    return ok("memlock", f"{shown}; only RDMA would need more")


def _judge_open_files(limit: int | None) -> Finding:
    if limit is None or limit >= FEW_OPEN_FILES:
        return ok("open files", "unlimited" if limit is None else f"{limit} per process")
    return warning(
        "open files",
        f"{limit} per process",
        "each client of the gateway takes one: ulimit -n 65536 before ./distserve up",
    )


def judge_memory_access(facts: Isolation, error: str) -> list[Finding]:
    """`error`: what one process got that read another's memory; "" if it could."""
    spaces = [kind for kind, own in (("PID", facts.own_pid_namespace), ("IPC", facts.own_ipc_namespace)) if own]
    place = "in a container" if facts.container else "no container"
    if spaces:
        seen = f"{place}, {' and '.join(spaces)} namespace of its own"
    else:
        seen = f"{place}, the host's PID and IPC namespaces"
    found = [ok("namespaces", seen)]
    if facts.container and spaces:
        share = "processes in other containers need the same ones: pid and ipc in compose (docker-compose.yml has them)"
        found = [warning("namespaces", seen, share)]
    if not error:
        return [*found, ok("process memory", "one process can read another's: CMA works")]
    return [
        *found,
        problem("process memory", f"reading another process's memory: {error}", _access_remedy(facts, error)),
    ]


def _access_remedy(facts: Isolation, error: str) -> str:
    if error == "ENOSYS":
        return "the kernel or a seccomp filter has no process_vm_readv; without it KV goes over TCP"
    if facts.container and not facts.may_ptrace:
        return "give the containers the capability: cap_add: [SYS_PTRACE]; without it KV goes over TCP"
    if facts.ptrace_scope and not facts.may_ptrace:
        return (
            f"kernel.yama.ptrace_scope is {facts.ptrace_scope}: sysctl kernel.yama.ptrace_scope=0, or KV goes over TCP"
        )
    return "a security module forbids it (SELinux deny_ptrace, AppArmor, seccomp); without it KV goes over TCP"


def judge_transports(names: Sequence[str], gpus: int) -> Finding:
    shown = ", ".join(names)
    reinstall = "the UCX that is loaded was built without it: install the pinned libucx, remove LD_LIBRARY_PATH"
    lost = [name for name in ("tcp", "cma") if name not in names]
    if lost:
        return problem("UCX", f"{shown or 'nothing'}; missing: {', '.join(lost)}", reinstall)
    if gpus and "cuda_ipc" not in names:
        return problem("UCX", f"{shown}; missing: cuda_ipc", f"KV between GPUs would go through the host: {reinstall}")
    return ok("UCX", shown)


def judge_pair(report: PairReport) -> Finding:
    link, copy = report.link, report.copy_gigabytes_per_second
    if not link.ok:
        return problem("KV between processes", f"fails: {link.detail}", "see the lines on UCX and process memory")
    shown = speed(link.transport, link.gigabytes_per_second, copy)
    if link.detail:
        return warning("KV between processes", shown, link.detail)
    return ok("KV between processes", shown)


def speed(transport: str, gigabytes_per_second: float, copy: float) -> str:
    return f"{transport}, {gigabytes_per_second:.1f} GB/s; a plain copy here: {copy:.1f} GB/s"


def judge_gpus(gpus: Sequence[Gpu], no_access: Sequence[tuple[int, int, str]]) -> list[Finding]:
    if not gpus:
        return [ok("GPUs", "none: engines run on the CPU")]
    found = []
    for gpu in gpus:
        free = (gpu.memory_mebibytes - gpu.used_mebibytes) / 1024
        shown = f"{gpu.name}, {free:.0f} of {gpu.memory_mebibytes / 1024:.0f} GiB free, driver {gpu.driver}"
        found.append(
            warning(f"GPU {gpu.index}", shown, "more than half is taken: see nvidia-smi for whose it is")
            if gpu.used_mebibytes * 2 > gpu.memory_mebibytes
            else ok(f"GPU {gpu.index}", shown)
        )
    for one, other, word in no_access:
        remedy = "KV between them goes through host memory; nvidia-smi topo -m shows which pairs are close"
        found.append(warning("peer access", f"GPU {one} and GPU {other}: {word}", remedy))
    if len(gpus) > 1 and not no_access:
        found.append(ok("peer access", "every GPU can read every other"))
    return found


def judge_weights(name: str, weights_bytes: int, memory_bytes: int, instances: int, *, loaded: bool) -> Finding:
    """On the CPU, where every instance has its own copy. `loaded`: they are in a running stack's memory."""
    shown = f"{name}: weights of {weights_bytes / GIB:.2f} GiB"
    if loaded:
        return ok("model", f"{shown}, in each instance of the running stack already")
    shown += f", loaded by each of {instances} instances"
    if weights_bytes * instances > memory_bytes:
        return warning("model", shown, "that is more than the memory available: fewer instances, or a smaller model")
    return ok("model", shown)
