"""Where the NATS server is and how to prove who we are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from shared.specs.settings import BadSetting

DEFAULT_URL = "nats://127.0.0.1:4222"
REPLICAS = ("1", "3", "5")  # an even number survives no more than the odd one below it


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    url: str = DEFAULT_URL  # nats:// or tls://, may hold user:password@
    nkey_seed_file: Path | None = None
    ca_file: Path | None = None  # certificate authority of a tls:// server, if not one the system knows
    kv_replicas: int = 1  # servers of a cluster that keep each bucket this process makes

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise BadSetting(f"NATS_URL must be nats://host:port or tls://host:port, not {self.shown_url!r}")
        for name, path in (("NATS_NKEY_SEED_FILE", self.nkey_seed_file), ("NATS_CA_FILE", self.ca_file)):
            if path is not None and not path.is_file():
                raise BadSetting(f"{name}: there is no file {path}")

    @classmethod
    def from_env(cls, variables: Mapping[str, str] = os.environ) -> Self:
        """From NATS_URL, NATS_NKEY_SEED_FILE, NATS_CA_FILE, NATS_KV_REPLICAS. BadSetting if one cannot be right."""
        seed, authority = variables.get("NATS_NKEY_SEED_FILE"), variables.get("NATS_CA_FILE")
        return cls(
            url=variables.get("NATS_URL") or DEFAULT_URL,
            nkey_seed_file=Path(seed) if seed else None,
            ca_file=Path(authority) if authority else None,
            kv_replicas=_replicas(variables.get("NATS_KV_REPLICAS") or "1"),
        )

    @property
    def shown_url(self) -> str:
        """The URL without user, password or token, for logs and errors."""
        scheme, separator, rest = self.url.rpartition("://")
        secret, _, host = rest.rpartition("@")
        return f"{scheme}{separator}***@{host}" if secret else self.url


def _replicas(text: str) -> int:
    if text not in REPLICAS:
        raise BadSetting(f"NATS_KV_REPLICAS={text!r}: it must be one of {', '.join(REPLICAS)}")
    return int(text)
