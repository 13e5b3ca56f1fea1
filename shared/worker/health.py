"""`python -m shared.worker.health FILE`: is the instance that keeps FILE fit to serve? For a container's health check.

An instance has no HTTP port. What it has is a beat, and the file is written when its own beat has come back to it from
the bus: so a fresh file says that the event loop turns, the bus carries, and everybody else can hear this instance too.
Standard library only: this is started every few seconds.
"""

import os
import sys
import time
from pathlib import Path

STALE_SECONDS = 5.0
READY = "ready"


def note(file: Path, state: str) -> None:
    """Write `state` in one piece: whoever reads at this moment sees the former one."""
    unfinished = file.with_name(f".{file.name}-{os.getpid()}")
    unfinished.write_text(state)
    unfinished.replace(file)


def trouble(file: Path, now: float) -> str:
    """What is wrong with the instance that keeps `file`; "" if nothing is. `now`: Unix seconds."""
    try:
        state, age_seconds = file.read_text(), now - file.stat().st_mtime
    except FileNotFoundError:
        return "it has not been heard on the bus yet"
    if age_seconds > STALE_SECONDS:
        return f"its last beat came back {age_seconds:.1f} s ago"
    return "" if state == READY else state


def main() -> None:
    found = trouble(Path(sys.argv[1]), time.time())
    print(found or READY)  # noqa: T201  (docker inspect shows it)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
