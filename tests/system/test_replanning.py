"""`./distserve up --replan`: under load that changes, instances change their role, and no request fails."""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.profiles import write_profile
from tests.system.running_up import Up, up

__all__ = ["up"]

PACE_SECONDS = 0.05  # between two requests, at least
AT_ONCE = 12
FOLLOWED_SECONDS = 120.0  # on a machine that does much else


class Load:
    """Requests at an even pace, if the machine can keep it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=200))
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.answered = 0
        self.failures: list[str] = []

    async def send(self, words: int, tokens: int, until: Callable[[int], bool]) -> None:
        async with asyncio.TaskGroup() as requests:
            sent = 0
            while not until(sent):
                await self._slots.acquire()
                requests.create_task(self._ask(words + sent % 5, tokens))
                sent += 1
                await asyncio.sleep(PACE_SECONDS)

    async def _ask(self, words: int, tokens: int) -> None:
        body = {"model": "demo", "prompt": "word " * words, "max_tokens": tokens, "ignore_eos": True}
        response = await self._client.post("/v1/completions", json=body)
        if response.status_code != 200 or response.json()["usage"]["completion_tokens"] != tokens:
            self.failures.append(response.text)
        self.answered += 1
        self._slots.release()

    async def close(self) -> None:
        await self._client.aclose()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_prompts_that_get_longer_turn_a_decode_instance_into_a_prefill_instance(
    up: Callable[..., Up], tmp_path: Path
):
    profile = write_profile(tmp_path / "profile.json", prefill_ms=(1.0, 0.5, 0.0), decode_ms=(10.0, 0.0, 1.0))
    targets = ("--slo-ttft", "1.0", "--slo-tpot", "0.03")
    running = up("--prefill", "1", "--decode", "2", "--replan", "--profile", str(profile), *targets)
    load, began = Load(running.url), time.monotonic()

    def followed(_: int) -> bool:
        late = time.monotonic() - began > FOLLOWED_SECONDS
        return late or "holds" in running.output

    await load.send(words=4, tokens=24, until=lambda sent: sent >= 160)
    await load.send(words=120, tokens=4, until=followed)
    await load.send(words=120, tokens=4, until=lambda sent: sent >= 20)  # of the new layout alone
    await load.close()
    assert re.search(r"Plan \d+ holds: 2 prefill, 1 decode", running.output), running.output
    assert not load.failures, load.failures[:3]
    assert load.answered > 160 + 100
    assert "is gone" not in running.output
    roles = sorted(command for command in commands(running) if "prefill" in command or "decode" in command)
    assert roles == ["services.decode.main", "services.prefill.main", "services.prefill.main"]
    assert running.stop() == 0, running.output


def commands(running: Up) -> list[str]:
    lines = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in running.children()]
    return [line[2] for line in lines if len(line) > 2]
