"""The message bus. `nats` is the real one; `memory` keeps the same promises inside one process."""

from shared.bus.interface import (
    Bus,
    BusError,
    BusTimeout,
    BusUnavailable,
    MessageTooBig,
    NoResponder,
    NotPermitted,
    Subscription,
)
from shared.bus.key_value import Bucket, Entry, KeyValue, RevisionChanged, StoreUnavailable

__all__ = [
    "Bucket",
    "Bus",
    "BusError",
    "BusTimeout",
    "BusUnavailable",
    "Entry",
    "KeyValue",
    "MessageTooBig",
    "NoResponder",
    "NotPermitted",
    "RevisionChanged",
    "StoreUnavailable",
    "Subscription",
]
