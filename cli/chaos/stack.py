"""The installation that is tormented: as `up` runs it, with a second gateway, and a proxy before NATS for everybody."""

import asyncio
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cli.chaos.proxy import Proxy
from cli.keeper import Keeper
from cli.restarts import RestartAfter, Restarts
from cli.stack import Part
from cli.supervisor import Supervisor
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId

LEASE_SECONDS, TRANSFER_SECONDS = 15, 3  # shorter than usual: what a fault leaves behind is gone soon after it
FRESH_SECONDS = 3.0
POLL_SECONDS = 0.05


class FixedRestarts(Restarts):
    """Down for as long as the fault says."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def died(self, *, status: int, ran_seconds: float, was_ever_served: bool) -> RestartAfter:
        return RestartAfter(self._seconds)


class TormentedStack(Supervisor):
    """`second_port`: of the gateway that `up` does not have."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.second_port = self._port()
        self.proxies: dict[str, Proxy] = {}
        self._beats: dict[InstanceId, tuple[Beat, float]] = {}

    async def close(self) -> None:
        for proxy in self.proxies.values():
            await proxy.close()

    def keepers_of(self, role: str) -> list[Keeper]:
        return sorted((k for k in self.keepers if k.part.role == role), key=lambda keeper: keeper.part.name)

    def parts_of_roles(self) -> dict[str, list[str]]:
        roles = {keeper.part.role for keeper in self.keepers}
        return {role: [keeper.part.name for keeper in self.keepers_of(role)] for role in roles}

    def beats(self) -> list[Beat]:
        """Of those that are alive."""
        now = time.monotonic()
        return [beat for beat, heard_at in self._beats.values() if now - heard_at < FRESH_SECONDS]

    def missing(self) -> list[str]:
        """Roles with fewer instances that are ready than are wanted."""
        ready = Counter(beat.role for beat in self.beats() if beat.ready and not beat.draining)
        return [role for role, count in self._stack.wanted.items() if ready[role] < count]

    def port_of(self, gateway: Part) -> int:
        return int(gateway.environment["DISTSERVE_PORT"])

    def known(self) -> set[InstanceId]:
        """All that were ever heard."""
        return set(self._beats)

    async def until_back(self, part: Part, known: set[InstanceId]) -> None:
        """Wait until whoever has taken this part's place is ready: nobody of those `known` before."""
        while True:
            if await self._is_back(part, known):
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _is_back(self, part: Part, known: set[InstanceId]) -> bool:
        if part.role == "gateway":
            return await _listens(self.port_of(part))
        return any(beat.role == part.role and beat.ready for beat in self.beats() if beat.instance not in known)

    def memory(self) -> dict[str, tuple[int, int]]:
        """Name of each part: its process id and resident bytes."""
        return {k.part.name: (k.process.pid, _resident_bytes(k.process.pid)) for k in self.keepers if k.process.running}

    async def _wanted_parts(self, nats_url: str) -> list[Part]:
        wanted = await super()._wanted_parts(nats_url)
        gateway = next(part for part in wanted if part.role == "gateway")
        second = {**gateway.environment, "DISTSERVE_PORT": str(self.second_port)}
        wanted.append(replace(gateway, name="gateway 2", environment=second))
        port = int(nats_url.rpartition(":")[2])
        return [await self._behind_proxy(part, port) for part in wanted]

    async def _behind_proxy(self, part: Part, nats_port: int) -> Part:
        proxy = self.proxies[part.name] = await Proxy.start(nats_port)
        changed = {
            "NATS_URL": f"nats://127.0.0.1:{proxy.port}",
            "DISTSERVE_LEASE_SECONDS": str(LEASE_SECONDS),
            "DISTSERVE_TRANSFER_TIMEOUT": str(TRANSFER_SECONDS),
            "DISTSERVE_KV_CHECKSUM": "1",
        }
        return replace(part, environment={**part.environment, **changed})

    async def _heard(self, beat: Beat) -> None:
        self._beats[beat.instance] = (beat, time.monotonic())
        await super()._heard(beat)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def _resident_bytes(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


async def until_restarted(keeper: Keeper, former: int, seconds: float) -> bool:
    """Another process has taken the place of `former`."""
    deadline = time.monotonic() + seconds
    while keeper.process.pid == former or not keeper.process.running:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
