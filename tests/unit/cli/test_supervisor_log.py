"""What the supervisor logs, and what it does when it cannot."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from cli.up import log_to


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_events_become_lines_of_json(tmp_path: Path):
    with (tmp_path / "log").open("w+") as file:
        log_to(file)
        structlog.get_logger().bind(connection="x").warning("bus_disconnected")
        file.seek(0)
        assert json.loads(file.read()).items() >= {"event": "bus_disconnected", "connection": "x"}.items()


def test_a_full_disk_stops_nobody():
    file = Path("/dev/full").open("w")  # noqa: SIM115  (it cannot be closed in order)
    log_to(file)
    structlog.get_logger().error("bus_closed")
    with pytest.raises(OSError, match="No space left"):
        file.close()
