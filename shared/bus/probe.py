"""Can we connect at all? nats-py would retry a wrong password in silence for as long as reconnecting is allowed."""

import asyncio
import ssl
from contextlib import suppress

import nats.errors

from shared.bus.client import BusClient, WithoutTls
from shared.bus.interface import BusUnavailable
from shared.bus.settings import BusSettings

CONNECT_SECONDS = 2
RECONNECT_WAIT_SECONDS = 0.1
HANG_UP_SECONDS = 0.5


async def probe(settings: BusSettings) -> None:
    """Connect once and let go, or raise BusUnavailable with the reason and where to look."""
    reasons: list[Exception] = []

    async def keep(error: Exception) -> None:
        reasons.append(error)

    client = BusClient(settings)
    try:
        await client.connect(
            settings.url,
            allow_reconnect=False,
            connect_timeout=CONNECT_SECONDS,
            max_reconnect_attempts=1,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # pyright: ignore[reportArgumentType]  (annotated int)
            nkeys_seed=seed_file(settings),
            tls=tls_context(settings),
            error_cb=keep,
        )
    except (OSError, TimeoutError, nats.errors.Error) as error:
        raise BusUnavailable(explain(settings, reasons[-1] if reasons else error)) from error
    finally:
        with suppress(nats.errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(HANG_UP_SECONDS):  # after a failed TLS handshake it would wait for ever
                await client.close()


def explain(settings: BusSettings, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if "authorization" in reason.lower():
        remedy = "the user, password or key is not one that the server knows: see NATS_URL and NATS_NKEY_SEED_FILE"
    elif isinstance(error, ssl.SSLError):
        remedy = "the certificates do not fit: see NATS_CA_FILE"
    elif isinstance(error, WithoutTls):
        remedy = "start it with deploy/nats-tls.conf, or have NATS_URL begin with nats://"
    else:
        remedy = "is the server running, and is NATS_URL right?"
    return f"cannot connect to NATS at {settings.shown_url}: {reason}; {remedy}"


def seed_file(settings: BusSettings) -> str | None:
    return str(settings.nkey_seed_file) if settings.nkey_seed_file else None


def tls_context(settings: BusSettings) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=settings.ca_file) if settings.ca_file else None
