"""An endpoint to one peer: a connection for sending, a lane for receiving."""

import asyncio
from collections.abc import Collection
from typing import Any

from shared.transport.address import UCX, pack_address, this_machine
from shared.transport.transfer import Message, MessageFailed, uninterrupted
from shared.transport.ucp import bulk_transport, open_transports
from shared.transport.worker import UcxWorker

CLOSE_NANOSECONDS = 10**9  # how long closing an endpoint may wait for the progress thread
ACKNOWLEDGE_SECONDS = 1.0  # for messages to say that they have ended, once their endpoint is closed
WITHDRAW_SECONDS = 0.1  # the same for receives that were cancelled


class Endpoint:
    """One UCX endpoint and the messages in flight. Error handling is on: without, a dead peer ends this process."""

    def __init__(self, worker: UcxWorker, endpoint_address: bytes) -> None:
        """MessageFailed if it cannot be made. The address must have been checked: a wrong one makes UCX abort."""
        self._worker, self._api = worker, worker.api
        try:
            peer = self._api.UCXAddress.create_from_buffer(endpoint_address)
            self._handle: Any = self._api.UCXEndpoint.create_from_worker_address(worker.handle, peer, True)
        except self._api.UCXError as error:
            raise MessageFailed(f"cannot connect: {error}") from error
        self._in_flight: set[Message] = set()
        self._cut_because = ""
        self._cutting: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        return not self._cut_because and self._handle.alive

    @property
    def busy(self) -> bool:
        return bool(self._in_flight)

    @property
    def transport_name(self) -> str:
        """What carries its bulk data; "" once it is lost."""
        return bulk_transport(open_transports(self._handle.handle), cuda=self._worker.cuda) if self.usable else ""

    def raise_if_lost(self) -> None:
        """MessageFailed, saying why, if this endpoint is of no use any more."""
        if self._cut_because:
            raise MessageFailed(f"the connection was cut: {self._cut_because}")
        try:
            self._handle.raise_on_error()
        except self._api.UCXError as error:
            raise MessageFailed(str(error)) from error

    async def give_up(self, messages: Collection[Message], cause: str) -> None:
        """End these messages."""
        await self.cut(cause)

    async def cut(self, cause: str) -> None:
        """End everything in flight. All who call this wait for the same end."""
        self._begin_cut(cause)
        assert self._cutting is not None
        await uninterrupted(self._cutting)

    def _begin_cut(self, cause: str) -> None:
        if self._cutting is None:
            self._cut_because = cause
            self._cutting = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await asyncio.to_thread(self._handle.close_blocking, CLOSE_NANOSECONDS)
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=ACKNOWLEDGE_SECONDS)

    def _prepare_post(self) -> None:
        self.raise_if_lost()
        self._worker.handle.populate_python_futures_pool()  # the notifier thread does not always come to it in time

    def _watch(self, request: Any, array: Any) -> Message:
        message = self._worker.watch(request, array)
        self._in_flight.add(message)
        message.add_done_callback(self._in_flight.discard)
        return message


class Connection(Endpoint):
    """What this process sends to one lane of one peer."""

    def post(self, array: Any, tag: int) -> Message:
        self._prepare_post()
        return self._watch(self._handle.tag_send(array, self._api.UCXXTag(tag)), array)


class Lane(Endpoint):
    """What this process receives from one peer, on a worker of its own.

    Closing an endpoint does not end every receive. Once the two sides have replaced their endpoints a different number
    of times, UCX lets messages in through endpoints of its own, out of reach. Stopping the worker ends them all; and
    the next lane has another address, which leaves the peer no doubt that it has to connect anew.
    """

    def __init__(self, worker: UcxWorker, peer_address: bytes, endpoint_address: bytes) -> None:
        super().__init__(worker, endpoint_address)
        self.peer_address = peer_address
        self.address = pack_address(UCX, this_machine(), worker.address)
        self._handle.set_close_callback(worker.loop.call_soon_threadsafe, (self._peer_lost,))

    def post(self, array: Any, tag: int) -> Message:
        """Posted on the worker, like all matching: receives of an endpoint, once cut, hold on to both for ever."""
        self._prepare_post()
        api = self._api
        return self._watch(self._worker.handle.tag_recv(array, api.UCXXTag(tag), api.UCXXTagMaskFull), array)

    async def give_up(self, messages: Collection[Message], cause: str) -> None:
        """End these, and nothing else if the peer has not begun to send them."""
        await self._worker.withdraw(messages)
        unended = [message for message in messages if not message.done()]
        if unended:
            _, unended = await asyncio.wait(unended, timeout=WITHDRAW_SECONDS)
        if unended:
            await self.cut(cause)

    async def _end(self) -> None:
        """On return nothing writes into any buffer."""
        self._handle.remove_close_callback()
        await self._worker.withdraw(list(self._in_flight))
        await super()._end()
        await self._worker.close()
        self._handle = None  # it would keep the worker's sockets open, and the peer waiting for the end of its sends

    def _peer_lost(self) -> None:
        """UCX has ended what was being sent; what was still awaited has to be ended here."""
        try:
            self.raise_if_lost()
        except MessageFailed as lost:
            self._begin_cut(str(lost))
