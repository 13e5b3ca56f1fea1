"""The bus over NATS.

Leans on some inner parts of nats-py 2.16 where its public ones lose messages (`round_trip`, `NatsSubscription.drain`),
time (`Outgoing`, `_AtOnce`) or secrecy (`BusClient`); tests/integration/bus holds them to it, the version is pinned.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inner

from shared.bus.client import BusClient
from shared.bus.delivery import Delivery
from shared.bus.interface import Bus, BusTimeout, BusUnavailable, MessageTooBig, NoResponder, NotPermitted
from shared.bus.key_value import STORE_SECONDS, Bucket
from shared.bus.nats_store import NatsKeyValue
from shared.bus.outgoing import Outgoing
from shared.bus.probe import CONNECT_SECONDS, RECONNECT_WAIT_SECONDS, explain, probe, seed_file, tls_context
from shared.bus.replies import Replies
from shared.bus.settings import BusSettings
from shared.bus.troubles import Troubles
from shared.messages.codec import decode, encode
from shared.telemetry.traces import current_headers

CONFIRM_SECONDS = 10.0  # for the server to confirm a subscription; spans a short outage
DRAIN_SECONDS = 10.0
FLUSH_SECONDS = 1
PING_INTERVAL_SECONDS = 5
OUTAGE_BUFFER_BYTES = 8 << 20
HEADER_ROOM_BYTES = 1024  # the server counts the headers too, and cuts the connection of whoever sends more


class NatsBus(Bus):
    """One connection to a NATS server, regained for ever when lost. Made by `connect`."""

    def __init__(self, settings: BusSettings, name: str) -> None:
        self.closed = asyncio.Event()
        self.troubles = Troubles()
        self._settings = settings
        self._client = BusClient(settings)
        self._outgoing = Outgoing(self._client)
        self._log = structlog.get_logger().bind(bus=settings.shown_url, connection=name)
        self._up = asyncio.Event()
        self._regained = asyncio.Event()
        self._reconnect_callbacks: list[Callable[[], Awaitable[None]]] = []
        self._callback_task: asyncio.Task[None] | None = None
        self._subscriptions: set[NatsSubscription] = set()

    @classmethod
    async def connect(cls, server: BusSettings | str, *, name: str, role: str) -> Self:
        """BusUnavailable, at once and with the reason, if there is no server or it does not let us in.

        `server` may be just a URL. `name` is shown in the server's monitoring. Replies go to a subject prefix of the
        `role`, so that the server's permissions can keep them private.
        """
        settings = BusSettings(url=server) if isinstance(server, str) else server
        await probe(settings)
        bus = cls(settings, name)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await bus._open(name, role)
        except TimeoutError as error:
            await bus._client.close()
            raise BusUnavailable(explain(settings, error)) from error
        bus._up.set()
        bus._callback_task = asyncio.create_task(bus._run_reconnect_callbacks())
        return bus

    async def _open(self, name: str, role: str) -> None:
        await self._client.connect(
            self._settings.url,
            name=name,
            inbox_prefix=f"_INBOX_{role}",
            nkeys_seed=seed_file(self._settings),
            tls=tls_context(self._settings),
            connect_timeout=CONNECT_SECONDS,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # pyright: ignore[reportArgumentType]  (annotated int)
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=2,
            pending_size=OUTAGE_BUFFER_BYTES,
            flush_timeout=FLUSH_SECONDS,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            lame_duck_mode_cb=self._on_lame_duck,
        )
        self._replies = Replies(self._client.new_inbox())
        await self._at_once(self._replies.subject, self._replies.receive)

    async def publish(self, subject: str, message: object, *, traced: bool = False) -> None:
        self.post(subject, message, traced=traced)
        self._outgoing.write()
        await self._outgoing.wait_for_room()

    def post(self, subject: str, message: object, *, traced: bool = False) -> None:
        self._put(subject, encode(message), headers=current_headers() if traced else None)

    async def request(self, subject: str, message: object, *replies: type, timeout_seconds: float) -> Any:
        inbox = self._replies.expect()
        try:
            self._put(subject, encode(message), reply=inbox, headers=current_headers())
            await self._outgoing.wait_for_room()
            reply = await self._replies.wait(inbox, timeout_seconds)
        except nats.errors.NoRespondersError:
            raise NoResponder(f"nobody is subscribed to {subject}") from None
        except nats.errors.TimeoutError:
            raise BusTimeout(f"no reply on {subject} within {timeout_seconds:g} s") from None
        finally:
            self._replies.forget(inbox)
        return decode(reply.data, *replies)

    async def subscribe(
        self, subject: str, handler: Callable[[Any], Awaitable[object]], *types: type, queue: str = ""
    ) -> "NatsSubscription":
        delivery = Delivery(subject, handler, types, self.troubles)

        async def receive(message: Msg) -> None:
            answer = partial(self._answer, message.reply) if message.reply else None
            await delivery.handle(message.subject, message.data, message.headers, answer)

        return await self.listen(subject, receive, queue)

    async def hear(
        self, subject: str, handler: Callable[[Any], object], *types: type, queue: str = ""
    ) -> "NatsSubscription":
        delivery = Delivery(subject, handler, types, self.troubles)

        def receive(message: Msg) -> None:
            answer = partial(self._answer, message.reply) if message.reply else None
            delivery.handle_now(message.subject, message.data, message.headers, answer)

        return await self._confirmed(subject, self._at_once(subject, receive, queue))

    async def listen(
        self, subject: str, receive: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> "NatsSubscription":
        """`subscribe`, for messages as they come."""
        return await self._confirmed(subject, self._client.subscribe(subject, queue=queue, cb=receive))

    async def _at_once(self, subject: str, receive: Callable[[Msg], None], queue: str = "") -> Inner:
        """`receive` is called by the task that reads, where nats-py would queue the message for a task of its own."""
        inner = await self._client.subscribe(subject, queue=queue, pending_bytes_limit=0)
        queued, inner._pending_queue = inner._pending_queue, _AtOnce(receive)
        while not queued.empty():
            receive(queued.get_nowait())
        return inner

    async def _confirmed(self, subject: str, subscribing: Awaitable[Inner]) -> "NatsSubscription":
        """Return when the server has it, or raise what keeps it from that."""
        try:
            inner = await subscribing
        except nats.errors.ConnectionClosedError as error:
            raise self._unavailable(subject, error) from error
        subscription = NatsSubscription(self, inner)
        self._subscriptions.add(subscription)
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                while not await self.round_trip():
                    pass  # the connection broke; the client subscribes again on the next one
        except (nats.errors.ConnectionClosedError, TimeoutError) as error:
            await subscription.drain()
            raise self._unavailable(subject, error) from error
        if subscription.refusal:  # the server says so before it confirms
            await subscription.drain()
            raise NotPermitted(f"{subscription.refusal} ({self._settings.shown_url}): see NATS_NKEY_SEED_FILE")
        return subscription

    def key_value(self, bucket: Bucket, kind: type) -> NatsKeyValue:
        return NatsKeyValue(
            self, self._client.jetstream(timeout=STORE_SECONDS), bucket, kind, replicas=self._settings.kv_replicas
        )

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._reconnect_callbacks.append(callback)

    @property
    def connected(self) -> bool:
        return self._client.is_connected and not self.closed.is_set()

    async def close(self) -> None:
        if self._callback_task is None:
            return
        self._callback_task.cancel()
        await asyncio.wait([self._callback_task])
        self._callback_task = None
        async with asyncio.TaskGroup() as drains:
            for subscription in list(self._subscriptions):
                drains.create_task(subscription.drain())
        await self._close_client()

    async def _close_client(self) -> None:
        """Write what the last handlers have sent, then hang up."""
        try:
            await self._client.close()
        except OSError as error:  # the connection is down; nobody calls _on_closed then
            self.troubles.note("bus_close_failed", error)
            self.closed.set()

    async def round_trip(self) -> bool:
        """True when the server has handled everything sent before this call; False when the connection broke meanwhile.

        nats-py's flush() writes its PING ahead of the commands that still wait to be written, so that one flush alone
        confirms nothing: yield first, and flush twice.
        """
        await self._up.wait()
        connections = self._client.stats["reconnects"]
        await asyncio.sleep(0)
        try:
            await self._client.flush(FLUSH_SECONDS)
            await self._client.flush(FLUSH_SECONDS)
        except nats.errors.FlushTimeoutError:
            return False
        return self._client.is_connected and self._client.stats["reconnects"] == connections

    def forget(self, subscription: "NatsSubscription") -> None:
        self._subscriptions.discard(subscription)

    def _put(self, subject: str, data: bytes, *, reply: str = "", headers: dict[str, str] | None = None) -> None:
        self._check_size(subject, data)
        try:
            self._outgoing.put(subject, data, reply=reply, headers=headers)
        except nats.errors.Error as error:
            raise self._unavailable(subject, error) from error

    def _answer(self, inbox: str, reply: object) -> None:
        self._put(inbox, encode(reply))

    def _check_size(self, subject: str, data: bytes) -> None:
        most = self._client.max_payload - HEADER_ROOM_BYTES
        if len(data) > most:
            raise MessageTooBig(f"{subject}: {len(data)} bytes, the server's max_payload allows {most}")

    def _unavailable(self, subject: str, error: Exception) -> BusUnavailable:
        return BusUnavailable(f"{subject}: {error or type(error).__name__} ({self._settings.shown_url})")

    async def _on_error(self, error: Exception) -> None:
        """The only place that hears of a refused publish: the call itself does not fail."""
        if isinstance(error, nats.errors.SlowConsumerError):
            self.troubles.note("bus_slow_consumer", error, error.subject)
        elif "permissions violation" in str(error).lower():
            self.troubles.note("bus_permission_violation", error)
            for subscription in self._subscriptions:
                subscription.note_refusal(str(error))
        else:
            self.troubles.note("bus_connection_error", error)

    async def _on_disconnected(self) -> None:
        self._up.clear()
        if not self._client.is_closed:
            self._log.warning("bus_disconnected")

    async def _on_reconnected(self) -> None:
        self._log.warning("bus_reconnected", reconnects=self._client.stats["reconnects"])
        self._up.set()
        self._regained.set()

    async def _on_closed(self) -> None:
        self._up.set()  # whoever waits for the connection finds it closed
        self.closed.set()

    async def _on_lame_duck(self) -> None:
        self._log.warning("bus_server_is_going_away")

    async def _run_reconnect_callbacks(self) -> None:
        """In a task of its own: in the client's, a callback that waits for the bus would keep it from reconnecting."""
        while True:
            await self._regained.wait()
            self._regained.clear()
            for callback in self._reconnect_callbacks:
                try:
                    await callback()
                except Exception as error:
                    self.troubles.note("bus_reconnect_callback_failed", error)


class _AtOnce(asyncio.Queue[Msg]):
    """Where nats-py queues the messages of a subscription: what is put in is handled, so it is always empty."""

    def __init__(self, receive: Callable[[Msg], None]) -> None:
        super().__init__()
        self._receive = receive  # must not raise: it would end the task that reads

    def put_nowait(self, item: Msg) -> None:
        self._receive(item)


class NatsSubscription:
    def __init__(self, bus: NatsBus, inner: Inner) -> None:
        self.refusal = ""  # what the server said, if it did not permit this subscription
        self._bus = bus
        self._inner = inner

    def note_refusal(self, error: str) -> None:
        """nats-py hands the server's words on in lower case."""
        if f'subscription to "{self._inner.subject.lower()}"' in error:
            self.refusal = error

    async def drain(self) -> None:
        """Takes DRAIN_SECONDS at most; what is not handled then is dropped, and said so in the log.

        Not nats-py's own drain(): that asks for the last messages before its UNSUB is written, and loses some.
        """
        inner = self._inner
        if inner._closed:
            return
        inner._closed = True
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._leave()
                if not inner._conn.is_closed:
                    await inner._pending_queue.join()
        except (TimeoutError, nats.errors.Error) as error:
            self._bus.troubles.note("bus_drain_failed", error, inner.subject)
        inner._stop_processing()
        self._bus.forget(self)

    async def _leave(self) -> None:
        """Return when nothing more can arrive. If the connection breaks, the next one has to be told again."""
        inner, client = self._inner, self._inner._conn
        confirmed = False
        try:
            while client.is_connected and not confirmed:
                await client._send_unsubscribe(inner._id)
                confirmed = await self._bus.round_trip()
        finally:
            client._remove_sub(inner._id)
