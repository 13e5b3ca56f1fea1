"""Start and end of a service process."""

import asyncio
import gc
import os
import signal

import structlog

from shared.bus.interface import Bus

log = structlog.get_logger()

SECOND_SIGNAL_STATUS = 130


def stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT: finish what runs. The second ends the process now."""
    stop = asyncio.Event()

    def stop_or_die() -> None:
        if stop.is_set():
            os._exit(SECOND_SIGNAL_STATUS)
        log.info("stopping")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop_or_die)
    return stop


def keep_what_is_loaded() -> None:
    """Modules and models stay: never look for garbage among them again.

    There are about a hundred thousand objects in a service, and to look through them all stops it for tens of
    milliseconds, with every stream that it serves.
    """
    gc.collect()
    gc.freeze()


def missing(bus: Bus, *, draining: bool, broken: str) -> list[str]:
    """What keeps a service from taking work, for people; empty if nothing does."""
    reasons = ["it is shutting down"] if draining else []
    if not bus.connected:
        reasons.append("there is no connection to NATS")
    return [*reasons, broken] if broken else reasons


async def stop_with(bus: Bus, stop: asyncio.Event) -> None:
    """Set `stop` when the connection is over for good: without the bus there is nothing to serve."""
    await bus.closed.wait()
    log.error("bus_closed")
    stop.set()
