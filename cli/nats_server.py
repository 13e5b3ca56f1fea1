"""The NATS server of a stack on one machine: the project's own deploy/nats.conf, on loopback."""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from cli.part_process import PartProcess
from cli.problems import Problem
from cli.stack import Part

ANY_PORT = -1
START_SECONDS = 10.0
POLL_SECONDS = 0.005


def nats_part(root: Path, folder: Path, port: int, public_keys: Mapping[str, str]) -> Part:
    """`folder` gets its store and the file that tells the port."""
    binary = Path(sys.executable).with_name("nats-server")
    if not binary.exists():
        raise Problem(f"{binary} is missing: remove {root / '.venv'} and start again, it will be made anew")
    address = ("-a", "127.0.0.1", "-p", str(port), "--ports_file_dir", str(folder), "-sd", str(folder))
    command = (str(binary), "-c", str(root / "deploy" / "nats.conf"), *address)
    return Part(name="nats", role="nats", command=command, environment=public_keys)


async def learn_port(process: PartProcess, folder: Path) -> int:
    """The port that the server has chosen. Problem if it ends, or does not say within START_SECONDS."""
    file = folder / f"nats-server_{process.pid}.ports"
    try:
        async with asyncio.timeout(START_SECONDS):
            while not (file.exists() and (content := file.read_text())):
                if not process.running:
                    raise Problem("nats-server did not start: " + " / ".join(process.last_lines(5)))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise Problem(f"nats-server has not started within {START_SECONDS:g} s") from None
    return int(json.loads(content)["nats"][0].rpartition(":")[2])
