"""Which layout the traffic wants: a value in the bus's store, written by a scheduler for whoever starts instances."""

from typing import ClassVar

from shared.specs.record import Number, Record


class Plan(Record, frozen=True, kw_only=True):
    """Instances of one device each. A higher epoch replaces the lower."""

    BUCKET: ClassVar[str] = "plan"
    KEY: ClassVar[str] = "current"
    epoch: int
    prefill: int
    decode: int
    reasons: tuple[str, ...]  # for people
    made_at: Number  # unix seconds
