"""A stand-in for a service process: beats, answers /ready as the gateway, and misbehaves as DISTSERVE_FAKE_<ROLE> says.

Run as `python -m services.<role>.main` from a folder whose services/ are copies of this file.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from shared.bus.heart import Heart
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from shared.specs.ids import Role, new_instance_id

ROLES: tuple[Role, ...] = ("gateway", "scheduler", "prefill", "decode")


async def answer_ready(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def main(role: Role, behaviour: str) -> None:
    instance = new_instance_id(role)
    sys.stderr.write(f"this is {instance}\n")
    if behaviour == "dies":
        sys.exit("no memory of the future")
    stop = asyncio.Event()
    on_signal = (lambda: None) if behaviour == "ignores SIGTERM" else stop.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
    if role == "gateway":
        await asyncio.start_server(answer_ready, os.environ["DISTSERVE_HOST"], int(os.environ["DISTSERVE_PORT"]))
    async with await NatsBus.connect(BusSettings.from_env(), name=instance, role=role) as bus:
        heart = Heart(bus, lambda number: Beat(instance=instance, role=role, number=number))
        beating = asyncio.create_task(heart.run())
        await stop.wait()
        beating.cancel()
    with (Path.cwd() / "stopped").open("a") as order:
        order.write(f"{role}\n")


if __name__ == "__main__":
    own_role = ROLES[ROLES.index(Path(__file__).parent.name)]  # pyright: ignore[reportArgumentType]
    asyncio.run(main(own_role, os.environ.get(f"DISTSERVE_FAKE_{own_role.upper()}", "")))
