"""Names of things. Distinct types, so that an instance never lands where a request is meant."""

import secrets
from typing import Literal, NewType

RequestId = NewType("RequestId", str)  # one sequence: a client call with n=3 is three requests
InstanceId = NewType("InstanceId", str)  # "<role>-<8 hex>", new at every boot of a process
BlockId = NewType("BlockId", int)  # index into the KV pool of one instance

Role = Literal["gateway", "scheduler", "prefill", "decode"]


def new_instance_id(role: Role) -> InstanceId:
    return InstanceId(f"{role}-{secrets.token_hex(4)}")


def role_of(instance: InstanceId) -> str:
    return instance.partition("-")[0]
