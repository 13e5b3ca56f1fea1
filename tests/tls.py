"""A server's certificate from an authority that nobody else knows. For tests."""

from pathlib import Path

import trustme

from tests.nats_server import GUARDED

SECURED = GUARDED.with_name("nats-tls.conf")


def certify(folder: Path) -> tuple[Path, dict[str, str]]:
    """The authority's certificate, and the variables of a server that runs SECURED."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    server = str(folder / "server.pem")
    return folder / "ca.pem", {"NATS_TLS_CERT_FILE": server, "NATS_TLS_KEY_FILE": server}
