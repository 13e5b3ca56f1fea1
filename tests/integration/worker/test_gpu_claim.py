"""GPUs shared out between real processes. nvidia-smi is one that lists four GPUs in two pairs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.specs.settings import BadSetting
from shared.worker.gpu_choice import Gpus
from shared.worker.gpu_claim import claim_gpus, own_gpus

ROOT = Path(__file__).parents[3]
NVIDIA_SMI = """#!/bin/sh
if [ "$1" = topo ]; then
    printf '\\tGPU0\\tGPU1\\tGPU2\\tGPU3\\tCPU Affinity\\n'
    printf 'GPU0\\tX\\tSYS\\tNV4\\tSYS\\t0-3\\nGPU1\\tSYS\\tX\\tSYS\\tNV4\\t0-3\\n'
    printf 'GPU2\\tNV4\\tSYS\\tX\\tSYS\\t0-3\\nGPU3\\tSYS\\tNV4\\tSYS\\tX\\t0-3\\n'
else
    printf '0, GPU-a\\n1, GPU-b\\n2, GPU-c\\n3, GPU-d\\n'
fi
"""
INSTANCE = """
import os, sys
from pathlib import Path
from shared.specs.settings import BadSetting
from shared.worker.gpu_claim import own_gpus
try:
    with own_gpus(Path(sys.argv[1]), int(sys.argv[2])):
        print(os.environ["CUDA_VISIBLE_DEVICES"], file=sys.stderr, flush=True)
        sys.stdin.read()
except BadSetting as error:
    print(error, file=sys.stderr, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start an instance that claims GPUs in `tmp_path`, says which, and waits."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["PATH"] = f"{tools}:{environment['PATH']}"
    started: list[subprocess.Popen[str]] = []

    def one(count: int = 1) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", INSTANCE, str(tmp_path), str(count)]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True
            )
        )
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stderr is not None
    return process.stderr.readline().strip()


def test_instances_that_start_at_once_take_a_gpu_each_and_one_too_many_is_told_who_has_them(start: Start):
    instances = [start() for _ in range(5)]
    answers = sorted(said(instance) for instance in instances)
    assert answers[1:] == ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
    assert answers[0].startswith("1 GPU(s) wanted and 0 of 4 free; in use: {'GPU-a': 'process ")


def test_the_second_instance_takes_the_gpu_next_to_the_first(start: Start):
    assert [said(start()), said(start())] == ["GPU-a", "GPU-c"]


def test_the_gpu_of_a_killed_instance_is_free_at_once(start: Start):
    first = start()
    assert said(first) == "GPU-a"
    assert said(start(3)) == "GPU-b,GPU-c,GPU-d"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert said(start()) == "GPU-a"


def test_instances_with_two_gpus_each_get_the_two_pairs_whoever_comes_first(start: Start):
    assert sorted([said(one) for one in (start(2), start(2))]) == ["GPU-a,GPU-c", "GPU-b,GPU-d"]


def test_a_released_gpu_is_free_within_the_same_process(tmp_path: Path):
    gpus = Gpus(("GPU-a",))
    claim = claim_gpus(tmp_path, gpus)
    with pytest.raises(BadSetting, match="0 of 1 free"):
        claim_gpus(tmp_path, gpus)
    claim.release()
    again = claim_gpus(tmp_path, gpus)
    assert again.uuids == ("GPU-a",)
    again.release()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, "exclude each other"),
        ({"PATH": "/nowhere"}, "nvidia-smi cannot tell the GPUs"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSetting, match=told), own_gpus(tmp_path):
        pass


def test_without_a_folder_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with own_gpus(None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
