"""A real nats-server for tests, run as the project runs it: deploy/nats.conf, on loopback.

Without its permissions, unless a test asks for them: `NatsServer(folder, GUARDED, make_keys(folder))`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cli.held_ports import hold_port, number_of
from cli.keys import IDENTITIES

OPEN = Path(__file__).parent / "open-nats.conf"
GUARDED = Path(__file__).parent.parent / "deploy" / "nats.conf"
UNUSED_KEYS = {f"{role.upper()}_NKEY": "unused" for role in IDENTITIES}
START_SECONDS = 10.0


class NatsServer:
    """Started by `start`; keeps its port over restarts, so that clients find it again."""

    def __init__(
        self, folder: Path, config: Path = OPEN, variables: Mapping[str, str] = UNUSED_KEYS, *, keeps: bool = True
    ) -> None:
        """`keeps`: it has a key-value store."""
        self._keeps = keeps
        self._folder = folder
        self._config = config
        self._variables = variables
        self._holder = hold_port("127.0.0.1", 0)
        weakref.finalize(self, self._holder.close)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def store(self) -> Path:
        """Where it keeps the values of its buckets."""
        return self._folder / "store"

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{number_of(self._holder)}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        binary = Path(sys.executable).with_name("nats-server")
        address = ["-a", "127.0.0.1", "-p", str(number_of(self._holder))]
        store = ["-sd", self.store] if self._keeps else []
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-c", self._config, *address, "--ports_file_dir", self._folder, *store],
                env={**os.environ, **self._variables},
                stdout=log,
                stderr=log,
            )
        self._wait_for_port(self._process)

    def _wait_for_port(self, process: subprocess.Popen[bytes]) -> None:
        file = self._folder / f"nats-server_{process.pid}.ports"
        deadline = time.monotonic() + START_SECONDS
        while not (file.exists() and file.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start: {(self._folder / 'nats.log').read_text()}")
            time.sleep(0.005)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(by)
        self._process.wait(timeout=10)

    def pause(self) -> None:
        """It keeps its connections but does nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def restart(self, down_seconds: float = 0.0) -> None:
        """SIGKILL, wait, start again on the same port."""
        self.stop(signal.SIGKILL)
        await asyncio.sleep(down_seconds)
        self.start()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for many tests, none of which may stop it. A room that wants it imports it into its conftest.py."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()
