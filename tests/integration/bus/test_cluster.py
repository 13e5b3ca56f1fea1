"""Three nats-servers as one: what the key-value store keeps outlives any of them."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.held_ports import hold_port, number_of
from shared.bus import Bucket, KeyValue, StoreUnavailable
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.requests import AbortRequest
from shared.specs.ids import RequestId
from tests.nats_server import OPEN, NatsServer

ELECTION_SECONDS = 20.0


def value(number: int) -> AbortRequest:
    return AbortRequest(request=RequestId("r"), attempt=number)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, NatsServer]]:
    holders = [hold_port("127.0.0.1", 0) for _ in range(3)]
    routes = ", ".join(f"nats://127.0.0.1:{number_of(holder)}" for holder in holders)
    servers = {}
    for number, holder in enumerate(holders, 1):
        folder = tmp_path / f"n{number}"
        folder.mkdir()
        port = number_of(holder)
        (folder / "nats.conf").write_text(
            f'include "{os.path.relpath(OPEN, folder)}"\nserver_name: n{number}\n'
            f"cluster {{ name: distserve, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n"
        )
        servers[f"n{number}"] = NatsServer(folder, folder / "nats.conf")
    for server in servers.values():
        server.start()
    yield servers
    for server in servers.values():
        server.stop()
    for holder in holders:
        holder.close()


async def until_written(store: KeyValue[AbortRequest], number: int) -> int:
    async with asyncio.timeout(ELECTION_SECONDS):
        while True:
            try:
                return await store.put("leader", value(number))
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def test_a_bucket_with_three_replicas_outlives_the_server_that_led_it(cluster: dict[str, NatsServer]):
    settings = BusSettings.from_env({"NATS_URL": cluster["n1"].url, "NATS_KV_REPLICAS": "3"})
    async with await NatsBus.connect(settings, name="test", role="scheduler") as bus:
        store = bus.key_value(Bucket("lease"), AbortRequest)
        revision = await until_written(store, 1)
        found = await bus._client.jetstream().stream_info("KV_lease")
        assert found.cluster is not None
        cluster[str(found.cluster.leader)].stop(signal.SIGKILL)
        assert await until_written(store, 2) > revision
