"""The gateway's and the scheduler's images hold no torch and no ucxx: importing them must not ask for either."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {"torch", "ucxx", "numpy", "safetensors", "transformers", "cuda", "rmm"}


@pytest.mark.parametrize("service", ["gateway", "scheduler"])
def test_it_imports_nothing_that_only_engines_need(service: str):
    program = f"import json, sys, services.{service}.main; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert HEAVY.isdisjoint(json.loads(done.stdout))
