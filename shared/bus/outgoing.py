"""What one connection to NATS says: in order, and with as few steps between saying and writing as there can be.

nats-py wakes a task for every write; on a machine that is not busy that takes longer than all else that is done for a
message. Here it is written by whoever says it, or at the end of the event loop's turn together with all that is said in
it. Only where the socket is full, or the connection is down, nats-py's own way is taken: it waits, and keeps things.
"""

import asyncio
import re
from collections.abc import Mapping

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

AT_ONCE_BYTES = 32 << 10  # more is written before the turn ends: the server may begin
_NOT_IN_A_SUBJECT = re.compile(r"[ \t\r\n]|^$")
_NO_NEWLINES = str.maketrans("\r\n", "  ")


class Outgoing:
    """Beside nats-py's own publish, on the same list of what is to be written, so that order holds over both."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_due = False

    def put(self, subject: str, data: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Have it written at the end of this turn. nats.errors.Error if it can be neither written nor kept."""
        client = self._client
        if _NOT_IN_A_SUBJECT.search(subject):
            raise nats.errors.BadSubjectError
        if client.is_closed:
            raise nats.errors.ConnectionClosedError
        waiting, most = client._pending_data_size, client._max_pending_size
        if waiting > 2 * most or (not client.is_connected and waiting + len(data) > most):
            raise nats.errors.OutboundBufferLimitError
        command = _command(subject, reply, data, headers)
        client._pending.append(command)
        client._pending_data_size += len(command)
        client.stats["out_msgs"] += 1
        client.stats["out_bytes"] += len(data)
        if client._pending_data_size >= AT_ONCE_BYTES:
            self.write()
        elif not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._write_what_is_due)

    def write(self) -> None:
        """Write everything now, unless something waits for the socket already: then it is written after that."""
        client = self._client
        if not client._pending or not client.is_connected:
            return
        assert isinstance(client._transport, TcpTransport)
        assert client._flush_queue is not None
        writer = client._transport._io_writer
        assert writer is not None
        if writer.transport.get_write_buffer_size():
            if client._flush_queue.empty():
                client._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        pending, client._pending, client._pending_data_size = client._pending, [], 0
        writer.write(pending[0] if len(pending) == 1 else b"".join(pending))

    async def wait_for_room(self) -> None:
        """Wait, but not for ever, while the server does not read and much waits for it. At twice that `put` raises."""
        client = self._client
        if client.is_connected and client._pending_data_size > client._max_pending_size:
            await client._flush_pending(force_flush=True)

    def _write_what_is_due(self) -> None:
        self._is_due = False
        self.write()


def _command(subject: str, reply: str, data: bytes, headers: Mapping[str, str] | None) -> bytes:
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)
    lines = "".join(f"{name}: {value.translate(_NO_NEWLINES)}\r\n" for name, value in headers.items())
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = (len(head), len(head) + len(data))
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject.encode(), reply.encode(), *sizes, head, data)
