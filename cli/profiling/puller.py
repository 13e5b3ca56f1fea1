"""The decode side of `cli.profiling.wire`: pulls and asks, and says how long it took.

`python -m cli.profiling.puller` reads its order from the standard input, as one line of JSON, and writes one line for
each size and one for the round trips over the bus.
"""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import structlog

from cli.profiling.wire import DECODE, MOST_PIECE_BYTES, PREFILL, SEND_SECONDS
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.engine.inventory import gpu_of, touched_memory
from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.transport.interface import TransferReport
from shared.transport.ucx import UcxTransport

ROUNDS, WARM_ROUNDS = 9, 2
ROUND_TRIPS, WARM_ROUND_TRIPS = 300, 50
ASK_SECONDS = 5.0


class Refused(Exception):
    """The sender could not send."""


async def pull(order: dict[str, Any]) -> None:
    server = BusSettings(url=order["nats"], nkey_seed_file=Path(order["seed"]))
    address = bytes.fromhex(order["address"])
    gpu = gpu_of(order["device"], 1)
    async with UcxTransport(gpu) as transport, await NatsBus.connect(server, name="profile", role="decode") as bus:
        memory = touched_memory(max(order["sizes"]), gpu)
        _say({"round_trips_ms": await round_trips(bus)})
        for size in order["sizes"]:
            seconds, transport_name = [], ""
            for _ in range(WARM_ROUNDS + ROUNDS):
                begun = time.perf_counter()
                transport_name = (await move(transport, bus, address, memory, size)).transport
                seconds.append(time.perf_counter() - begun)
            median = 1e3 * statistics.median(seconds[WARM_ROUNDS:])
            _say({"bytes": size, "milliseconds": median, "transport": transport_name})


async def move(transport: UcxTransport, bus: NatsBus, address: bytes, memory: Any, size: int) -> TransferReport:
    piece = min(size, MOST_PIECE_BYTES)
    count = size // piece
    buffers = [memory[start : start + piece] for start in range(0, count * piece, piece)]

    async def ask(own_address: bytes, transfer: int) -> None:
        message = LinkTest(puller=DECODE, address=own_address, transfer=transfer, pieces=count, piece_bytes=piece)
        answer = await bus.request(
            LinkTest.SUBJECT.format(instance=PREFILL), message, LinkTestAnswer, timeout_seconds=SEND_SECONDS
        )
        if answer.status != "sending":
            raise Refused(answer.detail)

    return await transport.receive(PREFILL, address, buffers, ask, SEND_SECONDS)


async def round_trips(bus: NatsBus) -> list[float]:
    """Milliseconds of a request for nothing, one after the other."""
    nothing = LinkTest(puller=DECODE, address=b"", transfer=0, pieces=0, piece_bytes=0)
    subject = LinkTest.SUBJECT.format(instance=PREFILL)
    took = []
    for _ in range(WARM_ROUND_TRIPS + ROUND_TRIPS):
        begun = time.perf_counter()
        await bus.request(subject, nothing, LinkTestAnswer, timeout_seconds=ASK_SECONDS)
        took.append(1e3 * (time.perf_counter() - begun))
    return took[WARM_ROUND_TRIPS:]


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the answer
    asyncio.run(pull(json.loads(sys.stdin.readline())))
