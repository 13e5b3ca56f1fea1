"""Who leads the schedulers: a value in the bus's store, for schedulers alone. Everybody else hears it from beats."""

from typing import ClassVar

from shared.specs.ids import InstanceId
from shared.specs.record import Record


class Lease(Record, frozen=True, kw_only=True):
    """The revision of its first write is the leader's term."""

    BUCKET: ClassVar[str] = "lease"
    KEY: ClassVar[str] = "scheduler"
    holder: InstanceId
