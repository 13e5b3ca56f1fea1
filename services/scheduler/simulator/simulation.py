"""A placement serving a trace: builds the instances, runs the clock, sums up."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import add

from services.scheduler.simulator.decode import DecodeInstance
from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.outcome import Outcome
from services.scheduler.simulator.placement import Group, Placement
from services.scheduler.simulator.prefill import PrefillInstance
from services.scheduler.simulator.profile import BadProfile, Coefficients, ModelProfile, Overhead, Profile
from services.scheduler.simulator.targets import Targets
from services.scheduler.simulator.workload import BadWorkload, Trace
from services.scheduler.simulator.world import World
from shared.messages.instances import Capacity
from shared.policy.decode import Order
from shared.specs.ids import InstanceId

BLOCK_TOKENS = 16
NOTHING = Coefficients((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of the instances. 0: what the profile says."""

    order: Order = "prefill_priority"  # of a colocated instance
    batch_tokens: int = 0  # of a prefill batch, L_m
    chunk_tokens: int = 512  # of a colocated step with chunks
    max_batch: int = 1024  # sequences of a decode instance
    queue_tokens: int = 8192  # that wait at a prefill instance
    queue_requests: int = 64
    decode_queue_requests: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is simulated."""

    profile: Profile
    model: ModelProfile
    placement: Placement
    policy: Policy = Policy()
    link_gigabytes_per_second: float | None = None  # between prefill and decode; None: the profile's
    hop_seconds: float | None = None  # of the control plane, one way; None: the profile's
    free_prefill: bool = False  # prefill takes no time: what decoding alone can do

    def check(self) -> None:
        """BadProfile with the reason if this cannot be."""
        for group in (self.placement.prefill, self.placement.decode):
            if group is not None:
                self.model.check(group.tp, group.pp, self.profile.memory_bytes)
        if self.link_gigabytes_per_second is not None and not 0 < self.link_gigabytes_per_second < math.inf:
            raise BadProfile("a link needs more than 0 GB/s")


def simulate(setup: Setup, trace: Trace, targets: Targets | None = None) -> Outcome:
    """Serve the whole trace, or stop as soon as it is clear whether `targets` are met."""
    setup.check()
    longest = max(map(add, trace.inputs, trace.outputs))
    if longest > setup.model.max_tokens:
        raise BadWorkload(
            f"{trace.name} has a request of {longest} tokens, {setup.model.max_tokens} fit {setup.model.name}"
        )
    profile, model, placement = setup.profile, setup.model, setup.placement
    link = setup.link_gigabytes_per_second or profile.link_gigabytes_per_second
    hop = profile.hop_ms / 1000 if setup.hop_seconds is None else setup.hop_seconds
    setup_seconds = profile.transfer_setup_ms / 1000
    world = World(trace, model.name, hop, link * 1e9, model.kv_bytes_per_token, setup_seconds)
    prefills = _prefills(setup, world) if placement.prefill else []
    decodes = _decodes(setup, world, placement.decode)
    with _no_collector():
        world.run(targets)
    return Outcome(world.records, placement, world.samples, prefills, decodes)


@contextmanager
def _no_collector() -> Iterator[None]:
    """A running world makes no cycles: there is nothing for Python to look for."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _latency(setup: Setup, group: Group, free: bool = False) -> Latency:
    if free:
        return Latency(NOTHING, Overhead(), 1, 0.0)
    link = setup.profile.link_gigabytes_per_second * 1e9
    send_seconds = 2 * setup.model.hidden / link  # one token's activations; a prompt's are hidden behind its layers
    return Latency(setup.model.times[group.tp], setup.profile.overhead, group.pp, send_seconds)


def _capacity(setup: Setup, group: Group, queue_requests: int, queue_tokens: int) -> Capacity:
    blocks = setup.model.kv_capacity(group.tp, group.pp, setup.profile.memory_bytes) // BLOCK_TOKENS
    return Capacity(
        max_model_tokens=setup.model.max_tokens,
        block_tokens=BLOCK_TOKENS,
        blocks=blocks,
        max_batch=setup.policy.max_batch,
        max_queue_tokens=queue_tokens,
        max_queue_requests=queue_requests,
    )


def _prefills(setup: Setup, world: World) -> list[PrefillInstance]:
    group, policy = setup.placement.prefill, setup.policy
    assert group is not None
    batch_tokens = policy.batch_tokens or setup.model.times[group.tp].batch_tokens
    capacity = _capacity(setup, group, policy.queue_requests, max(policy.queue_tokens, 2 * batch_tokens))
    prefills = []
    for number in range(group.count):
        name = InstanceId(f"prefill-{number:08x}")
        instance = PrefillInstance(world, name, _latency(setup, group, setup.free_prefill), capacity, batch_tokens)
        world.add(instance, "prefill")
        prefills.append(instance)
    return prefills


def _decodes(setup: Setup, world: World, group: Group) -> list[DecodeInstance]:
    policy = setup.policy
    capacity = _capacity(setup, group, policy.decode_queue_requests, 0)
    tokens = (
        policy.chunk_tokens
        if policy.order == "chunked"
        else policy.batch_tokens or setup.model.times[group.tp].batch_tokens
    )
    decodes = []
    for number in range(group.count):
        name = InstanceId(f"decode-{number:08x}")
        instance = DecodeInstance(world, name, _latency(setup, group), capacity, policy.order, tokens)
        world.add(instance, "decode")
        decodes.append(instance)
    return decodes
