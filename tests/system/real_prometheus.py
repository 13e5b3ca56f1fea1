"""A real Prometheus that scrapes a running stack."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.held_ports import hold_port, number_of

WAIT_SECONDS = 20.0


class Prometheus:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def query(self, expression: str) -> list[str]:
        """The values now. Fails if Prometheus does not understand it."""
        answer = self._http.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return [one["value"][1] for one in answer.json()["data"]["result"]]

    def rules(self) -> int:
        """How many there are, once each has been evaluated without an error."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
            health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
            if set(health.values()) == {"ok"}:
                return len(health)
            assert time.monotonic() < deadline, health
            time.sleep(0.1)

    def until(self, expression: str, value: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        seen: object = "no answer"
        while seen != [value]:
            assert time.monotonic() < deadline, f"{expression} is {seen}"
            time.sleep(0.1)
            with contextlib.suppress(httpx.TransportError):
                seen = self.query(expression) if self._http.get("/-/ready").status_code == 200 else "not ready"


@contextlib.contextmanager
def prometheus(folder: Path, rules: Path, targets: Path) -> Iterator[Prometheus]:
    """Skips the test where Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus (on Debian: apt install prometheus)")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "distserve", "file_sd_configs": [{"files": [str(targets)]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    holder = hold_port("127.0.0.1", 0)
    address = f"127.0.0.1:{number_of(holder)}"
    flags = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        running = subprocess.Popen([program, *flags, f"--web.listen-address={address}"], stdout=log, stderr=log)
    api = Prometheus(f"http://{address}")
    try:
        yield api
    finally:
        api.close()
        running.terminate()
        running.wait(10)
        holder.close()
