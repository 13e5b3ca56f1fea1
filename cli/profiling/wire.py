"""Times how KV moves between two processes of this machine, and a hop of the control plane, as the services do both.

This process is the prefill side and sends; `cli.profiling.puller` is the decode side, a child of this one: a child may
read its parent's memory only where any process of this user may, as with services started one beside the other. What
they say to each other goes over a NATS server of their own, with the project's configuration and keys.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.keys import make_keys, seed_file
from cli.nats_server import ANY_PORT, learn_port, nats_part
from cli.part_process import PartProcess
from cli.problems import Problem
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.engine.inventory import gpu_of, touched_memory
from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.specs.ids import InstanceId
from shared.transport.interface import TransportError
from shared.transport.ucx import UcxTransport

ROOT = Path(__file__).resolve().parents[2]
PREFILL, DECODE = InstanceId("prefill-0000d0c1"), InstanceId("decode-0000d0c2")
SIZES = 8  # how many, each four times the one before
MOST_BYTES = 128 << 20
MOST_PIECE_BYTES = 4 << 20
SEND_SECONDS = 30.0
LINE_SECONDS = 60.0  # for the puller to have timed one size


@dataclass(frozen=True, slots=True)
class Moved:
    bytes: int
    milliseconds: float  # from asking to the last byte: the median of several


@dataclass(frozen=True, slots=True)
class Wire:
    """What was found."""

    transport: str = ""
    moved: list[Moved] = field(default_factory=list)
    round_trips_ms: list[float] = field(default_factory=list)  # of an empty request over the bus, sorted


def sizes(block_bytes: int) -> list[int]:
    """Bytes of requests of 1, 4, 16, ... blocks."""
    steps = (block_bytes * 4**power for power in range(SIZES))
    return [size for size in steps if size <= max(MOST_BYTES, block_bytes * 16)]


def measure(block_bytes: int, device: str, done: Callable[[], None]) -> Wire:
    """`done` is called after each of `sizes` and once for the hops. Problem if this machine cannot do it."""
    with tempfile.TemporaryDirectory(prefix="distserve-profile-") as folder:
        return asyncio.run(_measure(Path(folder), sizes(block_bytes), device, done))


async def _measure(folder: Path, wanted: list[int], device: str, done: Callable[[], None]) -> Wire:
    keys = folder / "keys"
    public = make_keys(keys)
    async with _nats(folder, public) as url, UcxTransport(gpu_of(device, 0)) as transport:
        server = BusSettings(url=url, nkey_seed_file=seed_file(keys, "prefill"))
        memory = touched_memory(max(wanted), gpu_of(device, 0))

        async def send(message: LinkTest) -> LinkTestAnswer:
            if not message.pieces:  # the bus alone is timed
                return LinkTestAnswer(status="failed", detail="nothing was asked for")
            size = message.piece_bytes
            pieces = [memory[start : start + size] for start in range(0, message.pieces * size, size)]
            try:
                await transport.send(message.puller, message.address, message.transfer, pieces, SEND_SECONDS)
            except TransportError as error:
                return LinkTestAnswer(status="failed", detail=str(error))
            return LinkTestAnswer(status="sending")

        async with await NatsBus.connect(server, name="profile", role="prefill") as bus:
            await bus.subscribe(LinkTest.SUBJECT.format(instance=PREFILL), send, LinkTest)
            order = {
                "nats": url,
                "seed": str(seed_file(keys, "decode")),
                "address": transport.address.hex(),
                "device": device,
                "sizes": wanted,
            }
            return await _hear(order, done)


@asynccontextmanager
async def _nats(folder: Path, public_keys: Mapping[str, str]) -> AsyncIterator[str]:
    part = nats_part(ROOT, folder, ANY_PORT, public_keys)
    process = await PartProcess.start(part, cwd=ROOT, logs=folder, inherited=os.environ)
    try:
        yield f"nats://127.0.0.1:{await learn_port(process, folder)}"
    finally:
        process.terminate()
        await process.ended()


async def _hear(order: dict[str, object], done: Callable[[], None]) -> Wire:
    """Start the puller, give it its order, and read what it says until it ends."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.profiling.puller"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    transport, moved, round_trips = "", [], []
    try:
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.close()
        while line := await asyncio.wait_for(child.stdout.readline(), LINE_SECONDS):
            said = json.loads(line)
            if "round_trips_ms" in said:
                round_trips = sorted(said["round_trips_ms"])
            else:
                transport = said["transport"]
                moved.append(Moved(said["bytes"], said["milliseconds"]))
            done()
        status = await child.wait()
    except TimeoutError:
        raise Problem(f"no KV was moved within {LINE_SECONDS:g} s: see ./distserve doctor") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if status or not round_trips:
        raise Problem("the process that pulls KV ended early: see above, and ./distserve doctor")
    return Wire(transport, moved, round_trips)
