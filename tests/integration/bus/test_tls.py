"""The bus over deploy/nats-tls.conf, with certificates of an authority that only this test knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from cli.keys import make_keys, seed_file
from shared.bus import BusUnavailable
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from tests.nats_server import GUARDED, NatsServer


@dataclass
class Secured:
    server: NatsServer
    authority: Path  # the certificate that signed the server's
    seed: Path

    @property
    def url(self) -> str:
        return self.server.url.replace("nats://", "tls://")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    files = dict.fromkeys(("NATS_TLS_CERT_FILE", "NATS_TLS_KEY_FILE"), str(folder / "server.pem"))
    config = GUARDED.with_name("nats-tls.conf")
    server = NatsServer(folder, config, {**make_keys(folder / "keys"), **files})
    server.start()
    yield Secured(server, folder / "ca.pem", seed_file(folder / "keys", "operator"))
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
    with pytest.raises(BusUnavailable, match="without TLS"):
        await NatsBus.connect(nats_server.url.replace("nats://", "tls://"), name="x", role="operator")


async def ignore(_: Beat) -> None:
    pass
