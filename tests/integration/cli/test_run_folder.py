import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.keys import make_keys
from cli.problems import Problem
from cli.run_folder import KEPT_RUNS, RunFolder, Running, newest_running

RUNNING = Running(
    gateway_url="http://127.0.0.1:8000", nats_url="nats://127.0.0.1:4222", operator_seed="seed", model="/models/m"
)


def test_it_keeps_the_logs_and_removes_what_only_the_run_needed(tmp_path: Path):
    folder = RunFolder.create(tmp_path)
    (folder.nats / "file").touch()
    (folder.logs / "gateway.log").touch()
    make_keys(folder.keys)
    folder.announce(RUNNING)
    folder.close()
    assert [path.name for path in folder.path.rglob("*")] == ["logs", "gateway.log"]


def test_logs_go_where_they_are_wanted(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "runs", tmp_path / "elsewhere" / "logs")
    assert folder.logs == tmp_path / "elsewhere" / "logs"
    assert folder.logs.is_dir()
    folder.close()


def test_of_ended_runs_the_oldest_go_but_never_one_that_is_alive(tmp_path: Path):
    alive, ended = (RunFolder(tmp_path / name, tmp_path / name / "logs") for name in ("0-alive", "1-ended"))
    ended.close()
    for number in range(KEPT_RUNS):
        (tmp_path / f"2-{number}").mkdir()
    folder = RunFolder.create(tmp_path)
    assert alive.path.exists()
    assert not ended.path.exists()
    assert len(list(tmp_path.iterdir())) == KEPT_RUNS + 1
    alive.close()
    folder.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match=f"cannot write there.*{tmp_path}/file"):
        RunFolder.create(tmp_path / "file")


def test_a_full_disk_is_found_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    with pytest.raises(Problem, match=rf"only 3 MiB are left on the disk of {tmp_path}"):
        RunFolder.create(tmp_path)


def test_of_the_runs_that_are_alive_the_newest_is_found(tmp_path: Path):
    assert newest_running(tmp_path) is None
    older, newer, silent = (RunFolder(tmp_path / name, tmp_path / name / "logs") for name in ("1", "2", "3"))
    older.announce(RUNNING)
    newer.announce(replace(RUNNING, gateway_url="http://127.0.0.1:9000"))
    found = newest_running(tmp_path)
    assert found is not None
    assert found.gateway_url.endswith(":9000")
    newer.close()
    assert newest_running(tmp_path) == RUNNING
    os.close(older._lock or -1)  # it was killed, and could not tidy up
    assert newest_running(tmp_path) is None
    silent.close()
