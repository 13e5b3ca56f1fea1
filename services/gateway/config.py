"""The gateway's settings, all from the environment, all checked here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.gateway.keys import KeyLimits, digest_of
from services.gateway.requests import Patience
from services.gateway.targets import Admission, LatencyTargets
from shared.bus.settings import BusSettings
from shared.specs.settings import BadSetting, Environment
from shared.telemetry.settings import TelemetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    bus: BusSettings
    host: str
    port: int  # 0: any free one, which is logged
    model: str
    served_model: str  # the name clients use
    api_keys: tuple[str, ...]  # any of them opens every route; none: everything is open. In clear, or sha256:<hex>
    key_limits: KeyLimits
    most_body_bytes: int
    most_connections: int
    most_requests: int  # sequences at once, of all clients
    body_seconds: float  # for a body to arrive
    request_seconds: float  # for an answer to be complete
    send_seconds: float  # for a client to take what is sent, or a good deal of it
    keep_alive_seconds: float  # a comment is sent on a stream that was quiet for so long
    patience: Patience
    targets: LatencyTargets  # of requests that name none
    admission: Admission  # whom to refuse
    trace_folder: Path | None  # of all services' trace files, if they are here
    traces_exported: bool  # they go to a collector
    drain_seconds: float  # on SIGTERM: for running answers to be complete

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> "GatewayConfig":
        env, telemetry = Environment(variables), TelemetrySettings.from_env(variables)
        model = env.required("MODEL", "a model folder or a Hugging Face hub id")
        try:
            bus = BusSettings.from_env(variables)
        except ValueError as error:
            raise BadSetting(str(error)) from None
        return cls(
            bus=bus,
            host=env.text("HOST", "127.0.0.1"),
            port=env.integer("PORT", 8000, most=65535),
            model=model,
            served_model=env.text("SERVED_MODEL_NAME", model.rstrip("/").rpartition("/")[2]),
            api_keys=_api_keys(env.text("API_KEYS", "")) + _keys_in(env.path("API_KEYS_FILE")),
            key_limits=KeyLimits(
                at_once=env.integer("KEY_REQUESTS_AT_ONCE", 0) or None,
                per_minute=env.integer("KEY_REQUESTS_PER_MINUTE", 0) or None,
            ),
            most_body_bytes=env.integer("MAX_BODY_BYTES", 8 << 20, least=1024),
            most_connections=env.integer("MAX_CONNECTIONS", 8192, least=1),
            most_requests=env.integer("MAX_REQUESTS", 4096, least=1),
            body_seconds=env.number("BODY_TIMEOUT", 30.0, least=0.1),
            request_seconds=env.number("REQUEST_TIMEOUT", 600.0, least=1.0),
            send_seconds=env.number("SEND_TIMEOUT", 30.0, least=0.1),
            keep_alive_seconds=env.number("KEEP_ALIVE", 15.0, least=0.1),
            patience=Patience(
                first=env.number("SUBMIT_TIMEOUT", 5.0, least=0.1),
                recovery=env.number("RECOVERY_TIMEOUT", 30.0, least=0.1),
            ),
            targets=LatencyTargets(
                ttft_seconds=env.number("SLO_TTFT_MS", 0.0) / 1e3 or None,
                tpot_seconds=env.number("SLO_TPOT_MS", 0.0) / 1e3 or None,
            ),
            admission=env.choice("ADMISSION", "queue", ("queue", "slo")),
            trace_folder=None if telemetry.export_traces else telemetry.trace_folder,
            traces_exported=telemetry.export_traces,
            drain_seconds=env.number("DRAIN_TIMEOUT", 30.0),
        )


def _api_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if text and not keys:
        raise BadSetting("DISTSERVE_API_KEYS has no key in it: leave it out, or name keys, separated by commas")
    return tuple(_checked(key, "DISTSERVE_API_KEYS") for key in keys)


def _keys_in(file: Path | None) -> tuple[str, ...]:
    """One key a line; behind a space, whose it is."""
    if file is None:
        return ()
    try:
        lines = [line.split(maxsplit=1)[0] for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"DISTSERVE_API_KEYS_FILE={file} cannot be read: {error}") from error
    keys = tuple(_checked(key, f"DISTSERVE_API_KEYS_FILE={file}") for key in lines if not key.startswith("#"))
    if not keys:
        raise BadSetting(f"DISTSERVE_API_KEYS_FILE={file} has no key in it")
    return keys


def _checked(key: str, setting: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BadSetting(f"{setting}: a key may hold printable ASCII characters, and no spaces")
    try:
        digest_of(key)
    except ValueError as error:
        raise BadSetting(f"{setting}: behind sha256: belong 64 hexadecimal digits, not this: {error}") from None
    return key
