"""A Docker engine for tests, and one running stack of the project's compose file on it."""

import json
import os
import shutil
import subprocess
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from cli.held_ports import hold_port, number_of

ROOT = Path(__file__).parents[1]
ENGINE_SCRIPT = ROOT.parent / "shared" / "docker" / "engine.sh"  # starts an engine where there is none
ENGINE_SECONDS = 420
BUILD_SECONDS = 600
UP_SECONDS = 240
READY_SECONDS = 60


@contextmanager
def docker_engine() -> Iterator[None]:
    """One that runs, or one that the script starts and that is stopped at the end; else the test is skipped."""
    if _succeeds("docker", "info"):
        needs_compose()
        yield
        return
    if not ENGINE_SCRIPT.is_file() or os.geteuid() != 0:
        pytest.skip("no Docker engine answers, and none can be started here")
    done = subprocess.run([ENGINE_SCRIPT], capture_output=True, text=True, timeout=ENGINE_SECONDS, check=False)
    if done.returncode != 0:
        pytest.skip(f"no Docker engine can be started here: {done.stderr[-500:]}")
    os.environ["DOCKER_HOST"] = done.stdout.strip().rpartition("=")[2]
    try:
        needs_compose()
        yield
    finally:
        del os.environ["DOCKER_HOST"]
        if "starting dockerd" in done.stderr:
            subprocess.run([ENGINE_SCRIPT, "stop"], check=False)


def needs_compose() -> None:
    if not _succeeds("docker", "compose", "version") and not _succeeds("docker-compose", "version"):
        pytest.skip("there is neither `docker compose` nor docker-compose")


def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


def docker(*arguments: str, timeout_seconds: float = 60) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_seconds, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class ComposeStack:
    """docker-compose.yml as a project of its own, published on a free port of the loopback device."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._holder = hold_port("127.0.0.1", 0)
        weakref.finalize(self, self._holder.close)
        self.port = number_of(self._holder)
        self._environment = os.environ | {"DISTSERVE_PUBLISH": f"127.0.0.1:{self.port}"}
        self._command = ["docker", "compose"] if _succeeds("docker", "compose", "version") else ["docker-compose"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def build(self) -> None:
        self._compose("build", timeout_seconds=BUILD_SECONDS)

    def up(self, instances: Mapping[str, int]) -> None:
        self._compose("up", "--detach", *_scales(instances), timeout_seconds=UP_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready():
            assert time.monotonic() < deadline, self.logs("gateway")
            time.sleep(0.1)

    def scale(self, role: str, count: int) -> None:
        self._compose("up", "--detach", "--no-deps", *_scales({role: count}), role, timeout_seconds=UP_SECONDS)

    def recreate(self, service: str, count: int) -> None:
        """New containers for a service, as for a new image."""
        options = ("--detach", "--no-deps", "--force-recreate", *_scales({service: count}))
        self._compose("up", *options, service, timeout_seconds=UP_SECONDS)

    def run(self, service: str, *arguments: str) -> str:
        """What a container of its own prints, which must end well."""
        return self._compose("run", "--rm", "-T", "-e", "COLUMNS=200", service, *arguments)

    def containers(self, service: str = "") -> list[str]:
        """Ids of those that run."""
        return self._compose("ps", "--quiet", *([service] if service else [])).split()

    def inspect(self, container: str) -> dict:
        return json.loads(docker("inspect", container))[0]

    def config(self, *files: str) -> dict:
        """What Compose makes of these files together."""
        return yaml.safe_load(self._compose(*(word for file in files for word in ("--file", file)), "config"))

    def logs(self, service: str) -> str:
        return self._compose("logs", "--no-color", service)

    def down(self) -> None:
        self._compose("down", "--volumes", "--timeout", "5", timeout_seconds=UP_SECONDS)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def _compose(self, *arguments: str, timeout_seconds: float = 60) -> str:
        command = [*self._command, "--project-name", self._project, *arguments]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


def _scales(instances: Mapping[str, int]) -> list[str]:
    return [argument for role, count in instances.items() for argument in ("--scale", f"{role}={count}")]
