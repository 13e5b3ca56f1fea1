"""The bus inside one process: the order, queue groups and failures of NATS without a server. For tests."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from shared.bus.delivery import Delivery
from shared.bus.interface import Bus, BusTimeout, BusUnavailable, MessageTooBig, NoResponder
from shared.bus.key_value import Bucket
from shared.bus.memory_store import MemoryKeyValue, MemoryStore
from shared.bus.troubles import Troubles
from shared.messages.codec import decode, encode
from shared.telemetry.traces import current_headers

MAX_MESSAGE_BYTES = 8 << 20
Deliveries = Callable[[str, object], Sequence[float]]


@dataclass(frozen=True, slots=True)
class _Letter:
    subject: str
    data: bytes
    headers: dict[str, str] | None
    reply_to: asyncio.Future[bytes] | None


class MemoryBus:
    """What the server is to NATS. `connect` gives each "process" its own connection.

    `deliveries(subject, message)` decides what becomes of each message; replies come with the subject of their request.
    It returns the delay in seconds of every copy: `(0.0,)` is the ordinary case, `()` loses the message, `(0.0, 0.0)`
    doubles it, `(0.5,)` lets later ones overtake it.
    """

    def __init__(self) -> None:
        self.deliveries: Deliveries = lambda subject, message: (0.0,)
        self.store = MemoryStore()
        self._connections: list[MemoryConnection] = []
        self._turn = itertools.count()

    def connect(self, name: str) -> "MemoryConnection":
        connection = MemoryConnection(self, name)
        self._connections.append(connection)
        return connection

    async def restart(self) -> None:
        """As if the server had restarted: every connection runs its reconnect callbacks."""
        for connection in list(self._connections):
            for callback in connection.reconnect_callbacks:
                await callback()

    def send(self, letter: _Letter, message: object) -> None:
        """Put the letter into its receivers' queues. NoResponder if it is a request and there are none."""
        if letter.reply_to is not None and next(self._matching(letter.subject), None) is None:
            raise NoResponder(f"nobody is subscribed to {letter.subject}")
        self._later(letter.subject, message, partial(self._deliver, letter))

    def answer(self, subject: str, reply_to: asyncio.Future[bytes], reply: object) -> None:
        self._later(subject, reply, partial(_settle, reply_to, encode(reply)))

    def forget(self, connection: "MemoryConnection") -> None:
        self._connections.remove(connection)

    def _later(self, subject: str, message: object, deliver: Callable[[], None]) -> None:
        for delay_seconds in self.deliveries(subject, message):
            if delay_seconds == 0:
                deliver()
            else:
                asyncio.get_running_loop().call_later(delay_seconds, deliver)

    def _deliver(self, letter: _Letter) -> None:
        """To every subscription without a queue group, and to one of each group, in turn."""
        groups: dict[str, list[MemorySubscription]] = {}
        for subscription in self._matching(letter.subject):
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                subscription.letters.put_nowait(letter)
        turn = next(self._turn)
        for members in groups.values():
            members[turn % len(members)].letters.put_nowait(letter)

    def _matching(self, subject: str) -> Iterator["MemorySubscription"]:
        for connection in self._connections:
            for subscription in connection.subscriptions:
                if subject_matches(subscription.subject, subject):
                    yield subscription


class MemorySubscription:
    def __init__(self, owner: "MemoryConnection", hub: MemoryBus, subject: str, queue: str, delivery: Delivery) -> None:
        self.subject = subject
        self.queue = queue
        self.letters: asyncio.Queue[_Letter] = asyncio.Queue()
        self._owner = owner
        self._hub = hub
        self._delivery = delivery
        self._task = asyncio.create_task(self._run())

    async def drain(self) -> None:
        if self in self._owner.subscriptions:
            self._owner.subscriptions.remove(self)
            await self.letters.join()
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            letter = await self.letters.get()
            answer = partial(self._hub.answer, letter.subject, letter.reply_to) if letter.reply_to else None
            await self._delivery.handle(letter.subject, letter.data, letter.headers, answer)
            self.letters.task_done()


class MemoryConnection(Bus):
    def __init__(self, hub: MemoryBus, name: str) -> None:
        self.closed = asyncio.Event()
        self.name = name
        self.subscriptions: list[MemorySubscription] = []
        self.reconnect_callbacks: list[Callable[[], Awaitable[None]]] = []
        self.troubles = Troubles()
        self._hub = hub

    async def publish(self, subject: str, message: object, *, traced: bool = False) -> None:
        self.post(subject, message, traced=traced)
        await asyncio.sleep(0)  # the receivers get their turn

    def post(self, subject: str, message: object, *, traced: bool = False) -> None:
        self._send(subject, message, current_headers() if traced else None, None)

    async def request(self, subject: str, message: object, *replies: type, timeout_seconds: float) -> Any:
        reply_to: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._send(subject, message, current_headers(), reply_to)
        try:
            async with asyncio.timeout(timeout_seconds):
                return decode(await reply_to, *replies)
        except TimeoutError:
            raise BusTimeout(f"no reply on {subject} within {timeout_seconds:g} s") from None

    async def subscribe(
        self, subject: str, handler: Callable[[Any], Awaitable[object]], *types: type, queue: str = ""
    ) -> MemorySubscription:
        self._check_open()
        delivery = Delivery(subject, handler, types, self.troubles)
        subscription = MemorySubscription(self, self._hub, subject, queue, delivery)
        self.subscriptions.append(subscription)
        return subscription

    async def hear(
        self, subject: str, handler: Callable[[Any], object], *types: type, queue: str = ""
    ) -> MemorySubscription:
        async def handle(message: object) -> object:
            return handler(message)

        return await self.subscribe(subject, handle, *types, queue=queue)

    def key_value(self, bucket: Bucket, kind: type) -> MemoryKeyValue:
        return MemoryKeyValue(self._hub.store, bucket, kind)

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self.reconnect_callbacks.append(callback)

    @property
    def connected(self) -> bool:
        return not self.closed.is_set()

    async def close(self) -> None:
        if self.closed.is_set():
            return
        for subscription in list(self.subscriptions):
            await subscription.drain()
        self.closed.set()
        self._hub.forget(self)

    def _send(
        self, subject: str, message: object, headers: dict[str, str] | None, reply_to: asyncio.Future[bytes] | None
    ) -> None:
        self._check_open()
        data = encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageTooBig(f"{subject}: {len(data)} bytes, the bus takes {MAX_MESSAGE_BYTES}")
        self._hub.send(_Letter(subject, data, headers, reply_to), message)

    def _check_open(self) -> None:
        if self.closed.is_set():
            raise BusUnavailable(f"the bus connection of {self.name} is closed")


def subject_matches(pattern: str, subject: str) -> bool:
    """`*` stands for one word, `>` at the end for one or more."""
    wanted, words = pattern.split("."), subject.split(".")
    for position, word in enumerate(wanted):
        if word == ">":
            return position < len(words)
        if position == len(words) or word not in ("*", words[position]):
            return False
    return len(wanted) == len(words)


def _settle(reply_to: asyncio.Future[bytes], reply: bytes) -> None:
    if not reply_to.done():
        reply_to.set_result(reply)
