"""`./distserve doctor` beside a running `./distserve up` of the same checkout."""

import os
import re
import subprocess
import sys
from collections.abc import Callable

from tests.system.running_up import ROOT, Up, up

__all__ = ["up"]

PAIR = r"prefill-\w+ to decode-\w+ +\w+, [\d.]+ GB/s; a plain copy here: [\d.]+ GB/s"


def test_the_doctor_finds_the_running_stack_and_measures_every_pair(up: Callable[..., Up]):
    running = up("--prefill", "2", "--decode", "1")
    command = [sys.executable, "-m", "cli", "doctor"]
    wide = os.environ | {"COLUMNS": "200"}
    told = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=40, check=False)
    assert told.returncode == 0, told.stdout
    assert f"{running.url} is ready" in told.stdout
    assert "1 gateway, 1 scheduler, 2 prefill, 1 decode" in told.stdout
    assert len(re.findall(PAIR, told.stdout)) == 2
    assert "hears the beats alone" in told.stdout
    assert "in each instance of the running stack already" in told.stdout
    assert running.stop() == 0, running.output
