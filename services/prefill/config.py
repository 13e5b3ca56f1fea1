"""The prefill instance's settings, all from the environment, all checked here."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.specs.settings import Environment
from shared.worker.config import InstanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    instance: InstanceConfig
    batch_tokens: int  # L_m: prompts are packed up to this many tokens
    queue_tokens: int
    queue_requests: int
    lease_seconds: float  # of held KV, from its computation or its last renewal

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> "PrefillConfig":
        env = Environment(variables)
        instance = InstanceConfig.from_env(variables)
        return cls(
            instance=instance,
            batch_tokens=env.integer("PREFILL_BATCH_TOKENS", 512, least=1),
            queue_tokens=env.integer("PREFILL_QUEUE_TOKENS", 8192, least=1),
            queue_requests=env.integer("PREFILL_QUEUE_REQUESTS", 64, least=1),
            lease_seconds=env.number("LEASE_SECONDS", 30.0, least=2 * instance.transfer_seconds),
        )
