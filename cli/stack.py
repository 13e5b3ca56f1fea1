"""Which processes make up a running system, and what each is told. Pure: machine facts are given."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.specs.ids import Role


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
    threads: int | None = None  # of each engine; None: the cores divided between them
    api_keys: str = ""  # comma separated
    max_model_tokens: int | None = None
    kv_blocks: int | None = None  # per instance

    @property
    def url(self) -> str:
        """Where a client on this machine finds the gateway."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def wanted(self) -> dict[Role, int]:
        wanted: dict[Role, int] = {"gateway": 1, "scheduler": 1, "prefill": self.prefill, "decode": self.decode}
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
    cores: int,
    gpus: Sequence[str],
) -> list[Part]:
    """The services of `stack`, slowest to start first. `folders`: more variables, for what services write down.

    `seeds`: the file with each role's secret key. With `gpus` every engine sees one of them, in turn.
    """
    threads = stack.threads or max(1, cores // (stack.prefill + stack.decode))
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
    }
    engines: list[Part] = []
    engine_roles: tuple[tuple[Role, int], ...] = (("decode", stack.decode), ("prefill", stack.prefill))
    for role, count in engine_roles:
        for number in range(1, count + 1):
            visible = {"CUDA_VISIBLE_DEVICES": gpus[len(engines) % len(gpus)]} if gpus else {}
            engines.append(_service(role, engine | visible, seeds, f"{role} {number}"))
    return [*engines, _service("gateway", gateway, seeds), _service("scheduler", common, seeds)]


def _service(role: Role, environment: dict[str, str], seeds: Mapping[Role, str], name: str = "") -> Part:
    command = (sys.executable, "-m", f"services.{role}.main")
    environment = environment | {"NATS_NKEY_SEED_FILE": seeds[role]}
    return Part(name=name or role, role=role, command=command, environment=environment)


def _model_settings(stack: Stack) -> dict[str, str]:
    return {"DISTSERVE_MODEL": stack.model, "DISTSERVE_SERVED_MODEL_NAME": stack.served_name}


def _engine_settings(stack: Stack, threads: int) -> dict[str, str]:
    return {
        "DISTSERVE_DEVICE": stack.device,
        "DISTSERVE_DTYPE": stack.dtype,
        "DISTSERVE_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # threads that spin at a barrier starve the other engines of this machine
        "DISTSERVE_COLOCATED": "1" if stack.colocated else "0",
        "DISTSERVE_MAX_MODEL_TOKENS": str(stack.max_model_tokens or ""),
        "DISTSERVE_KV_BLOCKS": str(stack.kv_blocks or ""),
    }
