"""`./distserve keys`: who each service is to the NATS server. One nkey (ed25519) per role of deploy/nats.conf."""

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import nkeys
import typer

from cli.problems import Problem

IDENTITIES = ("gateway", "scheduler", "prefill", "decode", "operator")
PUBLIC_KEYS = "public.env"
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / ".distserve" / "keys"

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the keys.", show_default=".distserve/keys")]
Force = Annotated[bool, typer.Option("--force", help="Replace keys that are there: services then need the new ones.")]


ApiKey = Annotated[bool, typer.Option("--api-key", help="Make one key for the HTTP API instead, and write nothing.")]


def keys(out: Out = DEFAULT_FOLDER, force: Force = False, api_key: ApiKey = False) -> None:
    """Make a key for each role: secret seeds for the services, public keys for the NATS server."""
    if api_key:
        key = f"sk-{secrets.token_urlsafe(32)}"
        print(f"{key}\nis for the client; it is not kept here. In DISTSERVE_API_KEYS or DISTSERVE_API_KEYS_FILE:")
        print(f"sha256:{hashlib.sha256(key.encode()).hexdigest()}")
        return
    make_keys(out, force=force)
    print(f"{out}/<role>.seed: secret, mode 600; NATS_NKEY_SEED_FILE of that role's processes. {', '.join(IDENTITIES)}")
    print(f"{out}/{PUBLIC_KEYS}: the environment that nats-server needs for deploy/nats.conf")


def make_keys(folder: Path, *, force: bool = False) -> Mapping[str, str]:
    """Write a fresh seed per role and the public keys into `folder`; the variables that deploy/nats.conf wants.

    Problem, and nothing written, if a file is there already, unless `force`.
    """
    files = [*(seed_file(folder, role) for role in IDENTITIES), folder / PUBLIC_KEYS]
    there = [file.name for file in files if file.exists()]
    if there and not force:
        raise Problem(f"{folder} already has {', '.join(there)}: choose another --out, or replace them with --force")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    public = {}
    for role in IDENTITIES:
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        public[f"{role.upper()}_NKEY"] = bytes(nkeys.from_seed(bytearray(seed)).public_key).decode()
        _write_secret(seed_file(folder, role), seed)
    (folder / PUBLIC_KEYS).write_text("".join(f"{name}={key}\n" for name, key in public.items()))
    return public


def seed_file(folder: Path, role: str) -> Path:
    return folder / f"{role}.seed"


def _write_secret(path: Path, data: bytes) -> None:
    """Nobody else can read it at any moment; the file is whole or not there."""
    fresh = path.with_suffix(".fresh")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)
