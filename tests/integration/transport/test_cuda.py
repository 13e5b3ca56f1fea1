"""Blocks from one GPU process to another. Needs a GPU; both processes use the first one."""

import asyncio
import signal
from collections.abc import AsyncIterator

import numpy as np
import pytest

from shared.transport.checksum import checksum, host_bytes
from shared.transport.interface import TransferFailed
from shared.transport.selftest import fill, pattern
from shared.transport.ucx import UcxTransport
from tests.integration.transport.peer_process import PeerProcess, content

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BLOCK = 2 << 20
BLOCKS = 64


@pytest.fixture
async def decode(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[UcxTransport]:
    monkeypatch.setenv("UCX_TLS", "tcp,cma,cuda_copy,cuda_ipc")
    async with UcxTransport(cuda_device=0) as transport:
        yield transport


async def test_blocks_arrive_whole_from_another_process_over_cuda_ipc(decode: UcxTransport):
    pool = torch.zeros((BLOCKS, BLOCK), dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    async with PeerProcess("0") as peer:

        async def ask(address: bytes, transfer: int) -> None:
            await peer.tell_to_send(address, transfer, BLOCKS, BLOCK, distinct_pieces=BLOCKS)

        for _ in range(3):
            pool.zero_()
            torch.cuda.synchronize()
            report = await decode.receive(peer.name, peer.address, list(pool), ask, 20.0)
            assert await peer.outcome() == "sent"
            assert np.array_equal(host_bytes(pool), content(BLOCKS * BLOCK))
            assert report.transport == "cuda_ipc"
            assert report.gigabytes_per_second > 1


async def test_a_killed_gpu_peer_is_an_error_and_another_one_still_works(decode: UcxTransport):
    pool = torch.zeros((BLOCKS, BLOCK), dtype=torch.uint8, device="cuda:0")
    torch.cuda.synchronize()
    async with PeerProcess("0") as victim, PeerProcess("0") as healthy:

        async def kill(address: bytes, transfer: int) -> None:
            await victim.tell_to_send(address, transfer, 100 * BLOCKS, BLOCK)
            await asyncio.sleep(0.2)
            victim.signal(signal.SIGKILL)

        async def ask(address: bytes, transfer: int) -> None:
            await healthy.tell_to_send(address, transfer, BLOCKS, BLOCK)

        many = [block for _ in range(101) for block in pool]  # one round more than is ever sent
        async with asyncio.timeout(10):
            with pytest.raises(TransferFailed):
                await decode.receive(victim.name, victim.address, many, kill, 60.0)
        await decode.receive(healthy.name, healthy.address, list(pool), ask, 20.0)


async def test_gpu_memory_is_filled_and_read_by_duck_typing():
    buffer = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda:0")
    fill(buffer, pattern(3, 1 << 20))
    assert np.array_equal(host_bytes(buffer), pattern(3, 1 << 20))
    assert checksum(buffer) == checksum(pattern(3, 1 << 20))
