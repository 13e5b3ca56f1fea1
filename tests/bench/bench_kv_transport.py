"""How fast KV moves between two processes, against a plain copy in the same run, and what the event loop feels of it.

    python -m tests.bench.bench_kv_transport [--device cpu|0] [--peer-device 1] [--rounds 10]

Settings of UCX can be given in the environment, for instance UCX_TLS=tcp.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.transport.checksum import host_bytes
from shared.transport.ucx import UcxTransport
from tests.integration.transport.peer_process import PeerProcess, content, place

SHAPES = [(64, 2 << 20), (2048, 64 << 10), (1, 128 << 20)]  # (messages, bytes of each): 128 MiB
WARM_ROUNDS = 2
LAG_PAUSE_SECONDS = 0.001


@dataclass
class Figures:
    pull: list[float] = field(default_factory=list)  # GB/s from asking to the last byte
    move: list[float] = field(default_factory=list)  # GB/s from the first message to the last byte
    copy: list[float] = field(default_factory=list)  # GB/s of a plain copy of the same memory
    lags: list[float] = field(default_factory=list)  # seconds that the event loop came late during pulls
    transport: str = ""


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--peer-device", help="where the KV comes from", default=None)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device: str = arguments.device
    peer_device: str = arguments.peer_device or device
    print(
        f"{'messages':>18} {'over':>9} {'pull GB/s':>10} {'move GB/s':>10} {'copy GB/s':>10} {'ratio':>6}  loop lag ms"
    )
    async with UcxTransport(None if device == "cpu" else int(device)) as transport, PeerProcess(peer_device) as peer:
        for messages, size in SHAPES:
            figures = await measure(transport, peer, messages, size, (device, peer_device), arguments.rounds)
            report(messages, size, figures)


async def measure(
    transport: UcxTransport, peer: PeerProcess, messages: int, size: int, devices: tuple[str, str], rounds: int
) -> Figures:
    expected = content(messages * size)
    memory = place(np.zeros(messages * size, np.uint8), devices[0])
    source = place(expected.copy(), devices[1])  # for the plain copy: from where the peer has it
    buffers = [memory[i * size : (i + 1) * size] for i in range(messages)]
    figures = Figures()

    async def ask(address: bytes, transfer: int) -> None:
        await peer.tell_to_send(address, transfer, messages, size, distinct_pieces=messages)

    for number in range(WARM_ROUNDS + rounds):
        memory[:] = 0
        watching = asyncio.create_task(watch_lag(figures.lags))
        began = time.perf_counter()
        result = await transport.receive(peer.name, peer.address, buffers, ask, 30.0)
        pull_seconds = time.perf_counter() - began
        watching.cancel()
        assert await peer.outcome() == "sent"
        assert np.array_equal(host_bytes(memory), expected)
        if number < WARM_ROUNDS:
            figures.lags.clear()
            continue
        figures.pull.append(result.bytes / pull_seconds / 1e9)
        figures.move.append(result.gigabytes_per_second)
        figures.copy.append(result.bytes / copy_seconds(memory, source) / 1e9)
        figures.transport = result.transport
    return figures


async def watch_lag(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_PAUSE_SECONDS)
        lags.append(time.perf_counter() - began - LAG_PAUSE_SECONDS)


def copy_seconds(target: Any, source: Any) -> float:
    began = time.perf_counter()
    target[:] = source
    host_bytes(target[-1:])  # waits for a GPU
    return time.perf_counter() - began


def report(messages: int, size: int, figures: Figures) -> None:
    pull, move, copy = (statistics.median(values) for values in (figures.pull, figures.move, figures.copy))
    lags = sorted(figures.lags)
    lag = f"median {statistics.median(lags) * 1e3:.1f}, worst {lags[-1] * 1e3:.1f}" if lags else "not seen"
    shape = f"{messages} x {size >> 10} KiB"
    print(f"{shape:>18} {figures.transport:>9} {pull:10.2f} {move:10.2f} {copy:10.2f} {move / copy:6.2f}  {lag}")


if __name__ == "__main__":
    asyncio.run(main())
