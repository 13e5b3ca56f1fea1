"""Keeps the health file of this instance: what its beats say once they are back from the bus."""

from pathlib import Path

import structlog

from shared.bus.interface import Bus
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId, role_of
from shared.worker import health

log = structlog.get_logger()


async def keep_health_file(file: Path | None, bus: Bus, instance: InstanceId) -> None:
    """From now on, until the bus is closed, every beat of `instance` that comes from the bus is noted in `file`."""
    if file is None:
        return

    async def note(beat: Beat) -> None:
        try:
            health.note(file, _state_of(beat))
        except OSError as error:  # the file gets old, and whoever checks it sees that
            log.warning("health_not_noted", file=str(file), error=str(error))

    await bus.subscribe(Beat.SUBJECT.format(role=role_of(instance), instance=instance), note, Beat)


def _state_of(beat: Beat) -> str:
    if beat.draining:
        return "it is going away"
    return health.READY if beat.ready else beat.detail or "it is not ready"
