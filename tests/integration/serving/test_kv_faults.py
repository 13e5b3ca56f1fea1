"""Over real UCX a prefill instance stops sending, breaks off, or sends other bytes: the KV is computed anew."""

import asyncio
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from shared.specs.ids import InstanceId, role_of
from shared.specs.sampling import Sampling
from shared.transport.interface import TransportError
from shared.transport.ucx import UcxTransport
from tests.cluster import MODEL, Cluster
from tests.live_gateway import live_gateway

CALLS = [([*range(10, 40), number], Sampling(max_tokens=20, temperature=1.1, seed=number)) for number in range(4)]
FAULTY_SENDS = 3  # the second try of a pull fails as well, so that its request is handed back


class FaultyUcx(UcxTransport):
    """Its first sends, once `fault` is set, do not bring what was asked for."""

    fault = ""
    faulty = 0

    async def send(self, peer, address, transfer, buffers, timeout_seconds):
        if not self.fault or self.faulty == FAULTY_SENDS:
            return await super().send(peer, address, transfer, buffers, timeout_seconds)
        self.faulty += 1
        match self.fault:
            case "is called sent":
                return
            case "says nothing":
                await asyncio.sleep(timeout_seconds)
            case "breaks off":
                with suppress(TransportError):  # or it is called sent, though the receiver has given up
                    await super().send(peer, address, transfer, buffers[:-1], timeout_seconds)
            case "other bytes":
                others = [np.array(buffer) for buffer in buffers]
                others[0].reshape(-1).view(np.uint8)[7] ^= 1
                await super().send(peer, address, transfer, others, timeout_seconds)


@pytest.mark.parametrize("fault", ["is called sent", "says nothing", "breaks off", "other bytes"])
async def test_kv_that_cannot_be_had_is_computed_anew(connect, model: Path, alone, fault: str):
    senders: list[FaultyUcx] = []

    def make(instance: InstanceId) -> UcxTransport:
        if role_of(instance) == "prefill":
            senders.append(FaultyUcx())
            return senders[-1]
        return UcxTransport()

    async with (
        Cluster(connect, make, model, settings={"DISTSERVE_TRANSFER_TIMEOUT": "0.5"}) as cluster,
        live_gateway(await connect("live-gateway"), MODEL) as gateway,
    ):
        senders[0].fault = fault
        streams = [gateway.begin(*call) for call in CALLS]
        await asyncio.gather(*(stream.ended() for stream in streams))
        await cluster.until(cluster.idle)
    assert senders[0].faulty == FAULTY_SENDS
    assert [stream.tokens for stream in streams] == [alone(*call) for call in CALLS]
