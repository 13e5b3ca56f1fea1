"""Which processes make up a running system, and what each is told. Pure: machine facts are given."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.specs.ids import Role

GPU = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What `up` was asked for. Empty or None: the services' own default."""

    model: str  # a folder
    served_name: str
    prefill: int  # instances; 0 when colocated
    decode: int
    colocated: bool
    host: str
    port: int
    device: str
    dtype: str
    drain_seconds: float
    quantization: str = "none"
    schedulers: int = 1
    threads: int | None = None  # of each engine; None: the cores divided between them
    pinned: bool = False  # each engine computes on cores of its own
    api_keys: str = ""  # comma separated
    max_model_tokens: int | None = None
    kv_blocks: int | None = None  # per instance
    slo_ttft_seconds: float | None = None  # the targets of requests that name none
    slo_tpot_seconds: float | None = None
    admission: str = "queue"
    engine_settings: Mapping[str, str] = field(default_factory=dict)  # more environment of the engines: a plan's
    profile: str = ""  # of this machine: the scheduler replans by it
    replan: bool = False  # follow the plans that it makes

    @property
    def url(self) -> str:
        """Where a client on this machine finds the gateway."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def wanted(self) -> dict[Role, int]:
        wanted: dict[Role, int] = {
            "gateway": 1,
            "scheduler": self.schedulers,
            "prefill": self.prefill,
            "decode": self.decode,
        }
        return {role: count for role, count in wanted.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process."""

    name: str  # "gateway", "decode 2", "nats"
    role: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # on top of the supervisor's own

    @property
    def log_name(self) -> str:
        return self.name.replace(" ", "-") + ".log"


def parts(
    stack: Stack,
    *,
    folders: Mapping[str, str],
    nats_url: str,
    seeds: Mapping[Role, str],
    cores: Sequence[int],
    gpus: Sequence[str],
) -> list[Part]:
    """The services of `stack`, slowest to start first. `folders`: more variables, for what services write down.

    `seeds`: the file with each role's secret key. With `gpus` every engine sees one of them, in turn.
    """
    shares = core_shares(cores, stack.prefill + stack.decode)
    threads = stack.threads or len(shares[0])
    common = {
        "NATS_URL": nats_url,
        **folders,
        **_model_settings(stack),
        "DISTSERVE_DRAIN_TIMEOUT": f"{stack.drain_seconds:g}",
    }
    engine = common | _engine_settings(stack, threads)
    gateway = common | {
        "DISTSERVE_HOST": stack.host,
        "DISTSERVE_PORT": str(stack.port),
        "DISTSERVE_API_KEYS": stack.api_keys,
        "DISTSERVE_ADMISSION": stack.admission,
        **_target_settings(stack),
    }
    engines: list[Part] = []
    engine_roles: tuple[tuple[Role, int], ...] = (("decode", stack.decode), ("prefill", stack.prefill))
    for role, count in engine_roles:
        for number in range(1, count + 1):
            own = {GPU: gpus[len(engines) % len(gpus)]} if gpus else {}
            if stack.pinned:
                own["DISTSERVE_CORES"] = ",".join(map(str, shares[len(engines)]))
            engines.append(_service(role, engine | own, seeds, f"{role} {number}"))
    scheduler = common | _target_settings(stack) | ({"DISTSERVE_PROFILE": stack.profile} if stack.profile else {})
    names = ["scheduler"] if stack.schedulers == 1 else [f"scheduler {n}" for n in range(1, stack.schedulers + 1)]
    schedulers = [_service("scheduler", scheduler, seeds, name) for name in names]
    return [*engines, _service("gateway", gateway, seeds), *schedulers]


def another(part: Part, name: str, gpu: str) -> Part:
    """One more of the role of `part`."""
    return replace(part, name=name, environment={**part.environment, **({GPU: gpu} if gpu else {})})


def core_shares(cores: Sequence[int], engines: int) -> list[tuple[int, ...]]:
    """The same number of cores for each engine, at least one: in turn, if there are too few."""
    count = max(1, len(cores) // engines)
    return [tuple(cores[(number * count + i) % len(cores)] for i in range(count)) for number in range(engines)]


def _service(role: Role, environment: dict[str, str], seeds: Mapping[Role, str], name: str = "") -> Part:
    command = (sys.executable, "-m", f"services.{role}.main")
    environment = environment | {"NATS_NKEY_SEED_FILE": seeds[role]}
    return Part(name=name or role, role=role, command=command, environment=environment)


def _model_settings(stack: Stack) -> dict[str, str]:
    return {"DISTSERVE_MODEL": stack.model, "DISTSERVE_SERVED_MODEL_NAME": stack.served_name}


def _target_settings(stack: Stack) -> dict[str, str]:
    """In milliseconds, as the services want them; nothing for one that was not given: the environment may have it."""
    given = {"DISTSERVE_SLO_TTFT_MS": stack.slo_ttft_seconds, "DISTSERVE_SLO_TPOT_MS": stack.slo_tpot_seconds}
    return {name: f"{seconds * 1e3:g}" for name, seconds in given.items() if seconds is not None}


def _engine_settings(stack: Stack, threads: int) -> dict[str, str]:
    return {
        "DISTSERVE_DEVICE": stack.device,
        "DISTSERVE_DTYPE": stack.dtype,
        "DISTSERVE_QUANTIZATION": stack.quantization,
        "DISTSERVE_THREADS": str(threads),
        # Threads that spin at a barrier for long starve the other processes; those that sleep at once wake up late.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",  # about 0.1 ms: what lies between two barriers of one step
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # weights and KV in huge pages, where the kernel has them
        "DISTSERVE_COLOCATED": "1" if stack.colocated else "0",
        "DISTSERVE_MAX_MODEL_TOKENS": str(stack.max_model_tokens or ""),
        "DISTSERVE_KV_BLOCKS": str(stack.kv_blocks or ""),
        **stack.engine_settings,
    }
