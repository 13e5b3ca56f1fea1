"""nats-py's client, which keeps to TLS once it was told to."""

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from shared.bus.settings import BusSettings


class WithoutTls(nats.errors.Error):
    """The server talks in clear text."""


class BusClient(Client):
    """nats-py begins TLS if the server's greeting asks for it, whatever the URL says: on each connection another one
    may answer, and would be told in clear text who we are and all that waits to be said."""

    def __init__(self, settings: BusSettings) -> None:
        super().__init__()
        self._wants_tls = settings.url.startswith("tls://")

    def _connect_command(self) -> bytes:
        """The first thing that is said on every connection, once it is encrypted or will never be."""
        if self._wants_tls:
            assert isinstance(self._transport, TcpTransport)
            writer = self._transport._io_writer
            assert writer is not None
            if writer.get_extra_info("ssl_object") is None:
                self._transport.close()
                raise WithoutTls("the server offers no TLS, and NATS_URL says tls://")
        return super()._connect_command()
