"""Which kind of attention an engine uses."""

from shared.engine.attention.flash import FlashAttention
from shared.engine.attention.gathered import GatheredAttention
from shared.engine.attention.in_place import InPlaceAttention
from shared.engine.attention.paged import PagedAttention
from shared.engine.cpu.kernels import Kernels
from shared.engine.kv_cache import KvCache
from shared.specs.model import ModelSpec


def attention_for(cache: KvCache, spec: ModelSpec, kernels: Kernels | None) -> PagedAttention:
    """The fastest kind that this device, dtype and head size allow."""
    if kernels is not None and InPlaceAttention.usable(cache):
        return InPlaceAttention(cache, spec, kernels)
    kind = FlashAttention if FlashAttention.usable(cache) else GatheredAttention
    return kind(cache, spec)
