"""The self-test of one prefill-decode pair: are the bytes right, how fast do they come, and over what?

Both sides derive the same pattern from the transfer id. One round connects, touches the memory and lets UCX open what
it needs; the second is timed, long enough for the event loop's own delays not to matter, over the same little memory.
"""

from collections.abc import Awaitable, Callable

import numpy as np
import structlog

from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.messages.instances import Link
from shared.specs.ids import InstanceId
from shared.transport.address import is_on_this_machine
from shared.transport.checksum import host_bytes
from shared.transport.interface import Buffer, TransferReport, Transport, TransportError

log = structlog.get_logger()

PIECE_BYTES = 1 << 20
DISTINCT_PIECES = 8  # in memory; further pieces are the same ones again
WARMING_PIECES, TIMED_PIECES = 8, 64
MOST_PIECES, MOST_PIECE_BYTES = 256, 1 << 23  # that are sent, whoever asks
TIMEOUT_SECONDS = 2.0

# Below this a link is broken in some way, however busy the machine. Measured: cma 3-6, cuda_ipc hundreds.
LEAST_GIGABYTES_PER_SECOND = {"cma": 0.5, "cuda_ipc": 5.0}
REMEDY = {
    "cma": "the two processes cannot read each other's memory; they must run as one user, and containers must share "
    "one PID and one IPC namespace and have the capability SYS_PTRACE",
    "cuda_ipc": "the two processes cannot share GPU memory; it must come from plain cudaMalloc (no expandable "
    "segments), and containers must share one PID and one IPC namespace",
}

AskForLinkTest = Callable[[LinkTest], Awaitable[LinkTestAnswer]]
Allocate = Callable[[int], Buffer]  # bytes -> fresh uint8 [bytes] on the device that the pool is on


class LinkBroken(Exception):
    """The peer would not send, or other bytes arrived than were sent."""


async def test_link(
    transport: Transport,
    peer: InstanceId,
    address: bytes,
    request: AskForLinkTest,
    scratch: Allocate,
    puller: InstanceId,
) -> Link:
    """Decode side: receive from `peer` into memory from `scratch`, compare every byte, and say what was found."""
    buffer = scratch(DISTINCT_PIECES * PIECE_BYTES)
    cuda = hasattr(buffer, "__cuda_array_interface__")
    try:
        await _round(transport, peer, address, request, buffer, puller, WARMING_PIECES)
        report = await _round(transport, peer, address, request, buffer, puller, TIMED_PIECES)
    except (TransportError, LinkBroken) as error:
        return Link(peer=peer, ok=False, transport=transport.transport_name(peer), detail=str(error))
    speed = report.gigabytes_per_second
    detail = shortcoming(report.transport, speed, cuda=cuda) if is_on_this_machine(address) else ""
    if detail:
        log.warning("kv_link_slow", peer=peer, transport=report.transport, gigabytes_per_second=speed, detail=detail)
    return Link(peer=peer, ok=True, transport=report.transport, gigabytes_per_second=speed, detail=detail)


async def answer_link_test(transport: Transport, message: LinkTest, scratch: Allocate) -> LinkTestAnswer:
    """Prefill side: send the pattern. Returns when the puller has it all."""
    if not (0 < message.pieces <= MOST_PIECES and 0 < message.piece_bytes <= MOST_PIECE_BYTES):
        return LinkTestAnswer(
            status="failed", detail=f"{message.pieces} x {message.piece_bytes} bytes: not a link test"
        )
    size = DISTINCT_PIECES * message.piece_bytes
    buffer = scratch(size)
    fill(buffer, pattern(message.transfer, size))
    pieces = _pieces(buffer, message.piece_bytes, message.pieces)
    try:
        await transport.send(message.puller, message.address, message.transfer, pieces, TIMEOUT_SECONDS)
    except TransportError as error:
        return LinkTestAnswer(status="failed", detail=str(error))
    return LinkTestAnswer(status="sending")


def pattern(transfer: int, size: int) -> np.ndarray:
    """`size` bytes, uint8, that look random and are another sequence for every transfer."""
    words = np.arange(-(-size // 8), dtype=np.uint64) + np.uint64((transfer << 32) % (1 << 64))
    return ((words ^ (words >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)).view(np.uint8)[:size]


def shortcoming(transport: str, gigabytes_per_second: float, *, cuda: bool) -> str:
    """What is wrong with a link between two processes of one machine, and what would help; "" if nothing is."""
    expected = "cuda_ipc" if cuda else "cma"
    if transport == "tcp" or (cuda and transport != expected):
        return f"{transport or 'nothing known'} instead of {expected}: {REMEDY[expected]}"
    least = LEAST_GIGABYTES_PER_SECOND.get(transport, 0.0)
    if gigabytes_per_second < least:
        return f"{gigabytes_per_second:.2f} GB/s over {transport}, where {least} is the least: {REMEDY[expected]}"
    return ""


async def _round(
    transport: Transport,
    peer: InstanceId,
    address: bytes,
    request: AskForLinkTest,
    buffer: Buffer,
    puller: InstanceId,
    pieces: int,
) -> TransferReport:
    used = 0

    async def ask(own_address: bytes, transfer: int) -> None:
        nonlocal used
        used = transfer
        message = LinkTest(
            puller=puller, address=own_address, transfer=transfer, pieces=pieces, piece_bytes=PIECE_BYTES
        )
        answer = await request(message)
        if answer.status != "sending":
            raise LinkBroken(f"the peer could not send: {answer.detail}")

    report = await transport.receive(peer, address, _pieces(buffer, PIECE_BYTES, pieces), ask, TIMEOUT_SECONDS)
    wrong = int(np.count_nonzero(host_bytes(buffer) != pattern(used, len(buffer))))
    if wrong:
        raise LinkBroken(f"{wrong} of {len(buffer)} bytes arrived wrong over {report.transport}")
    return report


def _pieces(buffer: Buffer, piece_bytes: int, count: int) -> list[Buffer]:
    distinct = [buffer[start : start + piece_bytes] for start in range(0, len(buffer), piece_bytes)]
    return [distinct[index % len(distinct)] for index in range(count)]


def fill(buffer: Buffer, data: np.ndarray) -> None:
    """Write `data` over the whole buffer; on return the memory holds it."""
    if hasattr(buffer, "__cuda_array_interface__"):
        buffer.copy_(buffer.new_tensor(data))
        buffer[-1:].cpu()  # waits for the device: UCX knows nothing of its streams
    else:
        buffer[:] = data
