"""The decode instance's settings, all from the environment, all checked here."""

from collections.abc import Mapping
from dataclasses import dataclass

from shared.policy.decode import Order
from shared.specs.settings import Environment
from shared.worker.config import InstanceConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    instance: InstanceConfig
    max_batch: int  # sequences in one step
    queue_requests: int
    pulls_at_once: int
    pull_message_bytes: int
    checksum: bool  # of the moved blocks
    colocated: bool  # prefills here as well
    order: Order  # of prefill and decode in one instance; matters only when colocated
    prefill_tokens: int  # colocated: tokens of one prefill batch, or of one step with chunks

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> "DecodeConfig":
        env = Environment(variables)
        return cls(
            instance=InstanceConfig.from_env(variables),
            max_batch=env.integer("MAX_BATCH", 64, least=1),
            queue_requests=env.integer("DECODE_QUEUE_REQUESTS", 256, least=1),
            pulls_at_once=env.integer("PULLS_AT_ONCE", 4, least=1),
            pull_message_bytes=env.integer("PULL_MESSAGE_BYTES", 8 << 20, least=1),
            checksum=env.flag("KV_CHECKSUM", False),
            colocated=env.flag("COLOCATED", False),
            order=env.choice("COLOCATED_POLICY", "prefill_priority", ("prefill_priority", "chunked")),
            prefill_tokens=env.integer("PREFILL_BATCH_TOKENS", 512, least=1),
        )
