"""The bus over deploy/nats-tls.conf, with certificates of an authority that only this test knows."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from cli.keys import make_keys, seed_file
from shared.bus import BusUnavailable
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId
from tests.nats_server import NatsServer
from tests.tls import SECURED, certify


@dataclass
class Secured:
    server: NatsServer
    authority: Path  # the certificate that signed the server's
    keys: Path

    @property
    def seed(self) -> Path:
        return self.key("operator")

    def key(self, role: str) -> Path:
        return seed_file(self.keys, role)

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])

    @property
    def url(self) -> str:
        return self.server.url.replace("nats://", "tls://")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for many tests."""
    with running(tmp_path_factory.mktemp("tls")) as secured:
        yield secured


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Secured]:
    """One that may be stopped."""
    with running(tmp_path) as secured:
        yield secured


@contextmanager
def running(folder: Path) -> Iterator[Secured]:
    authority, certificates = certify(folder)
    server = NatsServer(folder, SECURED, {**make_keys(folder / "keys"), **certificates})
    server.start()
    yield Secured(server, authority, folder / "keys")
    server.stop()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_client_that_knows_the_authority_gets_in(secured: Secured, scheme: str):
    url = f"{scheme}://{secured.url.partition('://')[2]}"
    settings = BusSettings(url=url, ca_file=secured.authority, nkey_seed_file=secured.seed)
    async with await NatsBus.connect(settings, name="x", role="operator") as bus:
        subscription = await bus.subscribe(Beat.SUBJECT.format(role="*", instance="*"), ignore, Beat)
        assert bus.connected
        await subscription.drain()


async def test_a_server_whose_authority_is_unknown_is_not_trusted(secured: Secured, tmp_path: Path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for authority in (None, tmp_path / "other.pem"):
        settings = BusSettings(url=secured.url, ca_file=authority, nkey_seed_file=secured.seed)
        with pytest.raises(BusUnavailable, match="NATS_CA_FILE"):
            await NatsBus.connect(settings, name="x", role="operator")


async def test_tls_is_no_substitute_for_a_key(secured: Secured):
    with pytest.raises(BusUnavailable, match="NATS_NKEY_SEED_FILE"):
        await NatsBus.connect(BusSettings(url=secured.url, ca_file=secured.authority), name="x", role="operator")


async def test_whoever_wants_tls_does_not_talk_to_a_server_without_it(nats_server: NatsServer):
    with pytest.raises(BusUnavailable, match=r"offers no TLS.*nats-tls\.conf"):
        await NatsBus.connect(nats_server.url.replace("nats://", "tls://"), name="x", role="operator")


async def test_a_connection_that_is_lost_is_regained_over_tls_or_not_at_all(own: Secured):
    """On the way back somebody else answers at the server's address, in clear text: he is told nothing."""
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":8388608,"headers":true}\r\n')
        told.put_nowait(await reader.read(1 << 16))
        writer.close()

    decode = BusSettings(url=own.url, ca_file=own.authority, nkey_seed_file=own.key("decode"))
    operator = BusSettings(url=own.url, ca_file=own.authority, nkey_seed_file=own.key("operator"))
    async with (
        await NatsBus.connect(decode, name="x", role="decode") as bus,
        await NatsBus.connect(operator, name="y", role="operator") as other,
    ):
        heard: asyncio.Queue[Beat] = asyncio.Queue()
        await other.subscribe(Beat.SUBJECT.format(role="*", instance="*"), heard.put, Beat)
        await say_beat(bus, 1)
        assert (await asyncio.wait_for(heard.get(), 5)).number == 1
        own.server.stop()
        poser = await asyncio.start_server(pose, "127.0.0.1", own.port)
        await say_beat(bus, 2)
        assert [await asyncio.wait_for(told.get(), 10) for _ in range(4)] == [b""] * 4
        assert not bus.connected
        assert bus.troubles.counts["bus_connection_error"] > 0
        poser.close()
        await poser.wait_closed()
        own.server.start()
        await until(lambda: bus.connected and other.connected)
        await other.round_trip()
        await say_beat(bus, 3)
        while (await asyncio.wait_for(heard.get(), 5)).number < 3:
            pass


async def say_beat(bus: NatsBus, number: int) -> None:
    beat = Beat(instance=InstanceId("decode-1"), role="decode", number=number)
    await bus.publish(Beat.SUBJECT.format(role="decode", instance="decode-1"), beat)


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def ignore(_: Beat) -> None:
    pass
