"""What a container's health check says."""

import os
from pathlib import Path

import pytest

from shared.bus.memory import MemoryBus
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId
from shared.worker.health import READY, STALE_SECONDS, note, trouble
from shared.worker.pulse import keep_health_file

ME = InstanceId("decode-12345678")


def test_an_instance_is_fit_as_long_as_its_last_beat_is_fresh(tmp_path: Path):
    file = tmp_path / "health"
    assert trouble(file, now=0) == "it has not been heard on the bus yet"
    note(file, READY)
    os.utime(file, (1000, 1000))
    assert trouble(file, now=1000 + STALE_SECONDS) == ""
    assert trouble(file, now=1000 + STALE_SECONDS + 1) == "its last beat came back 6.0 s ago"


@pytest.mark.parametrize(
    ("beat", "said"),
    [
        (Beat(instance=ME, role="decode", number=1), ""),
        (Beat(instance=ME, role="decode", number=1, draining=True), "it is going away"),
        (Beat(instance=ME, role="decode", number=1, ready=False), "it is not ready"),
        (
            Beat(instance=ME, role="decode", number=1, ready=False, detail="the last 3 steps failed"),
            "the last 3 steps failed",
        ),
    ],
)
async def test_it_is_as_fit_as_its_beat_says_once_that_is_back_from_the_bus(tmp_path: Path, beat: Beat, said: str):
    file, bus = tmp_path / "health", MemoryBus().connect(ME)
    await keep_health_file(file, bus, ME)
    await bus.publish(Beat.SUBJECT.format(role="decode", instance=ME), beat)
    await bus.close()  # drains
    assert trouble(file, now=file.stat().st_mtime) == said


async def test_the_beats_of_others_prove_nothing(tmp_path: Path):
    file, bus = tmp_path / "health", MemoryBus().connect(ME)
    await keep_health_file(file, bus, ME)
    other = InstanceId("decode-87654321")
    await bus.publish(Beat.SUBJECT.format(role="decode", instance=other), Beat(instance=other, role="decode", number=1))
    await bus.close()
    assert not file.exists()
