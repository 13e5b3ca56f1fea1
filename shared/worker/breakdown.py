"""When an instance cannot go on: what is wrong, and its end, so that it is started afresh."""

import asyncio
import os
import sys
from typing import NoReturn

import structlog

log = structlog.get_logger()

MOST_FAILURES = 3  # failed steps in a row, of different requests


class InstanceBroken(Exception):
    """Raised by a service that has handed everything back and must not go on."""


class Breakdown:
    """Says once and for all that this instance is of no use any more, and why."""

    def __init__(self) -> None:
        self.reason = ""
        self._happened = asyncio.Event()

    def declare(self, reason: str) -> None:
        if not self.reason:
            log.error("instance_broken", reason=reason)
            self.reason = reason
            self._happened.set()

    def note_failures(self, in_a_row: int, last: Exception) -> None:
        """One failed step is the batch's affair; several in a row are the instance's."""
        if in_a_row >= MOST_FAILURES:
            self.declare(f"{in_a_row} steps in a row failed, the last one with: {last or type(last).__name__}")

    async def happened(self) -> None:
        await self._happened.wait()

    def raise_if_broken(self) -> None:
        if self.reason:
            raise InstanceBroken(self.reason)


def end_broken(service: str, error: InstanceBroken) -> NoReturn:
    """End this process now, and say why: a thread that hangs in a driver would keep it from ending in order."""
    sys.stderr.write(f"{service}: {error}\n")
    sys.stderr.flush()
    os._exit(1)
