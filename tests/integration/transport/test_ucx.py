"""What only separate processes can do to each other."""

import asyncio
import gc
import os
import random
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from shared.transport.interface import Ask, TransferFailed
from shared.transport.ucx import UcxTransport
from shared.transport.worker import UcxWorker
from tests.integration.transport.peer_process import HESITATION_SECONDS, PeerProcess, content

MEBIBYTE = 1 << 20


@pytest.fixture(params=["tcp,cma", "tcp"])
def transports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What this process and its peers may use."""
    monkeypatch.setenv("UCX_TLS", request.param)
    return request.param


@pytest.fixture
async def decode(transports: str) -> AsyncIterator[UcxTransport]:
    async with UcxTransport() as transport:
        yield transport


def sending(peer: PeerProcess, pieces: int, piece_bytes: int) -> Ask:
    async def ask(address: bytes, transfer: int) -> None:
        await peer.tell_to_send(address, transfer, pieces, piece_bytes)

    return ask


async def begun(receiving: asyncio.Task, memory: np.ndarray) -> None:
    """Returns as soon as the first byte has arrived."""
    while not memory[0]:
        assert not receiving.done(), receiving.exception()
        await asyncio.sleep(0)


async def test_blocks_arrive_from_another_process_over_the_transport_that_is_reported(
    decode: UcxTransport, transports: str
):
    ours = np.zeros((16, MEBIBYTE), np.uint8)
    async with PeerProcess() as peer:
        report = await decode.receive(peer.name, peer.address, list(ours), sending(peer, 16, MEBIBYTE), 10.0)
        assert await peer.outcome() == "sent"
    assert all(np.array_equal(piece, content(MEBIBYTE)) for piece in ours)
    assert report.transport == transports.rpartition(",")[2]


async def test_a_peer_killed_in_the_middle_is_an_error_at_once_and_another_peer_still_works(decode: UcxTransport):
    ours = np.zeros(16 * MEBIBYTE, np.uint8)
    pieces = [ours] * 32  # too much to be there before the peer is killed
    async with PeerProcess() as victim, PeerProcess() as healthy:
        receiving = asyncio.create_task(
            decode.receive(victim.name, victim.address, pieces, sending(victim, 32, len(ours)), 60.0)
        )
        await begun(receiving, ours)
        victim.signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(TransferFailed) as failure:
                await receiving
        assert failure.value.retryable
        before = ours.copy()
        await asyncio.sleep(0.1)
        assert np.array_equal(ours, before)
        ours[:] = 0
        await decode.receive(healthy.name, healthy.address, [ours], sending(healthy, 1, len(ours)), 10.0)
        assert np.array_equal(ours, content(len(ours)))


async def test_a_receiver_that_gives_up_leaves_no_sender_waiting(decode: UcxTransport):
    """Mostly the send fails. UCX may also call sent, though nobody has it, what comes while the receiver gives up."""
    ours = np.zeros((2, MEBIBYTE), np.uint8)
    async with PeerProcess() as peer:
        with pytest.raises(TransferFailed, match="expected were"):
            await decode.receive(peer.name, peer.address, list(ours), sending(peer, 64, 8 * MEBIBYTE), 10.0)
        before = ours.copy()
        outcome = await peer.outcome()
        assert outcome == "sent" or "reset by remote peer" in outcome, "the sender did not wait for its own deadline"
        assert np.array_equal(ours, before)
        await decode.receive(peer.name, peer.address, list(ours), sending(peer, 2, MEBIBYTE), 10.0)
        assert await peer.outcome() == "sent"


async def test_a_sender_that_hangs_while_its_receiver_gives_up_holds_up_nobody(monkeypatch: pytest.MonkeyPatch):
    """Messages that come to a lane while it is being cut are received by nobody, and nobody waits for them."""
    monkeypatch.setenv("UCX_TLS", "tcp")
    close = UcxWorker.close

    async def close_late(worker: UcxWorker) -> None:
        await asyncio.sleep(5 * HESITATION_SECONDS)
        await close(worker)

    monkeypatch.setattr(UcxWorker, "close", close_late)
    ours = np.zeros((2, MEBIBYTE), np.uint8)
    async with UcxTransport() as decode, PeerProcess(manner="hesitant") as peer:
        wakes = threading.Timer(10, peer.signal, [signal.SIGCONT])  # a loop that hangs cannot notice it
        wakes.start()
        with pytest.raises(TransferFailed, match="expected were"):
            await decode.receive(peer.name, peer.address, list(ours), sending(peer, 8, 8 * MEBIBYTE), 10.0)
        assert wakes.is_alive(), "nothing went on until the sender did"
        wakes.cancel()


async def test_a_peer_that_hangs_in_the_middle_and_wakes_up_again_writes_nothing_late(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("UCX_TLS", "tcp")  # over cma the receiver reads, a hanging sender notwithstanding
    ours = np.zeros(64 * MEBIBYTE, np.uint8)
    async with UcxTransport() as decode, PeerProcess() as peer:
        receiving = asyncio.create_task(
            decode.receive(peer.name, peer.address, [ours], sending(peer, 1, len(ours)), 1.0)
        )
        await begun(receiving, ours)
        peer.signal(signal.SIGSTOP)
        with pytest.raises(TransferFailed, match="not done after"):
            await receiving
        before = ours.copy()
        assert not before.all()
        peer.signal(signal.SIGCONT)
        assert "failed" in await peer.outcome()
        assert np.array_equal(ours, before)
        await decode.receive(peer.name, peer.address, [ours], sending(peer, 1, len(ours)), 10.0)
        assert np.array_equal(ours, content(len(ours)))


async def test_a_process_that_is_gone_is_an_error_not_a_wait(decode: UcxTransport):
    async with PeerProcess() as peer:
        pass
    ours = np.zeros(MEBIBYTE, np.uint8)

    async def never(address: bytes, transfer: int) -> None:
        """The peer cannot be asked any more."""

    async with asyncio.timeout(5):
        with pytest.raises(TransferFailed):
            await decode.receive(peer.name, peer.address, [ours], never, 60.0)


async def test_closing_leaves_no_thread_and_no_open_file_behind(decode: UcxTransport):
    async def use_and_close() -> None:
        ours = np.zeros((4, MEBIBYTE), np.uint8)
        async with UcxTransport() as one, UcxTransport() as two:

            async def ask(address: bytes, transfer: int) -> None:
                await two.send(peer, address, transfer, [content(MEBIBYTE)] * 4, 5.0)

            await one.receive(peer, two.address, list(ours), ask, 5.0)

    peer = PeerProcess().name
    await use_and_close()  # what the library opens once per process, and what the loop keeps
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threads_of_its_own()
    for _ in range(3):
        await use_and_close()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threads_of_its_own() <= threads


def threads_of_its_own() -> int:
    """Not those that the event loop keeps for whatever waits in one: under load it starts more of them."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses (hexadecimal, as the kernel writes them) and ports on which a process takes TCP connections."""
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()]
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    ours = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]
    return [(address, int(port, 16)) for address, port in ours]


async def test_strangers_reach_it_on_the_loopback_device_alone_and_garbage_does_not_disturb_it(decode: UcxTransport):
    """Among it what begins as UCX's own connections do: its magic number, then something else."""
    chance, magic = random.Random(5), (0xCAFEBABE12345678).to_bytes(8, "little")
    ours = np.zeros(MEBIBYTE, np.uint8)
    async with PeerProcess() as peer:
        places = [*listening(peer.pid), *listening(os.getpid())]
        assert places
        assert {address for address, _ in places} == {"0100007F"}
        for number in range(20):
            strangers = [await asyncio.open_connection("127.0.0.1", port) for _, port in places]
            for _, writer in strangers:
                writer.write((b"", b"GET / HTTP/1.1\r\n\r\n", magic)[number % 3] + chance.randbytes(number * 40))
            ours[:] = 0
            await decode.receive(peer.name, peer.address, [ours], sending(peer, 1, len(ours)), 10.0)
            assert await peer.outcome() == "sent"
            assert np.array_equal(ours, content(len(ours)))
            for _, writer in strangers:
                writer.close()
