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

__all__ = [
    "Bus",
    "BusError",
    "BusTimeout",
    "BusUnavailable",
    "MessageTooBig",
    "NoResponder",
    "NotPermitted",
    "Subscription",
]
