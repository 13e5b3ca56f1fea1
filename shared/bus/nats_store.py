"""The key-value store of the bus over NATS: JetStream's key-value buckets, on the server's disk.

A watch here is an ordinary subscription to what is written, and a look now and then: nats-py's own watch does not
survive a restart of the server.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.kv import KeyValue as Inner

from shared.bus.key_value import STORE_SECONDS, Bucket, Entry, KeyValue, RevisionChanged, StoreUnavailable, follow
from shared.messages.codec import decode, encode

if TYPE_CHECKING:
    from shared.bus.nats import NatsBus

R = TypeVar("R")

MOST_BUCKET_BYTES = 1 << 20  # on the server's disk
MOST_VALUE_BYTES = 256 << 10
OTHER_CONFIGURATION = 10058  # JetStream's error codes
WRONG_LAST_SEQUENCE = (10071, 10164)


class NatsKeyValue(KeyValue[Any]):
    def __init__(
        self, bus: "NatsBus", jetstream: JetStreamContext, bucket: Bucket, kind: type, *, replicas: int
    ) -> None:
        self._bus, self._jetstream, self._bucket, self._kind = bus, jetstream, bucket, kind
        self._replicas = replicas
        self._stream, self._prefix = f"KV_{bucket.name}", f"$KV.{bucket.name}."
        self._inner = Inner(bucket.name, self._stream, self._prefix, jetstream, direct=True)
        self._is_made = False  # as `bucket` says, as far as we know

    async def get(self, key: str) -> Entry[Any] | None:
        try:
            found = await self._within_deadline(lambda: self._inner.get(key))
        except nats.js.errors.KeyNotFoundError:
            return None
        except nats.js.errors.APIError as error:
            raise self._unavailable(error) from error
        return Entry(decode(found.value or b"", self._kind), found.revision or 0)

    async def create(self, key: str, value: object) -> int:
        return await self._write(key, lambda: self._inner.create(key, encode(value)))

    async def update(self, key: str, value: object, revision: int) -> int:
        return await self._write(key, lambda: self._inner.update(key, encode(value), last=revision))

    async def put(self, key: str, value: object) -> int:
        return await self._write(key, lambda: self._inner.put(key, encode(value)))

    async def delete(self, key: str, revision: int) -> None:
        await self._write(key, lambda: self._inner.delete(key, last=revision))

    async def watch(self, key: str) -> AsyncGenerator[Entry[Any] | None, None]:
        written = asyncio.Event()

        async def note(_: Msg) -> None:
            written.set()

        subscription = await self._bus.listen(self._prefix + key, note)
        try:
            async for entry in follow(partial(self.get, key), written):
                yield entry
        finally:
            await subscription.drain()

    async def _write(self, key: str, write: Callable[[], Awaitable[R]]) -> R:
        changed = RevisionChanged(f"{self._prefix}{key} is not at the revision that was named")
        try:
            return await self._within_deadline(lambda: self._made_then(write))
        except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyNotFoundError):
            raise changed from None  # not found: what stood in the way of a create has expired since
        except nats.js.errors.APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:  # of a delete
                raise changed from None
            raise self._unavailable(error) from error

    async def _made_then(self, write: Callable[[], Awaitable[R]]) -> R:
        if not self._is_made:
            await self._make()
        try:
            return await write()
        except nats.js.errors.NoStreamResponseError:  # the server has lost what it had on its disk
            await self._make()
            return await write()

    async def _make(self) -> None:
        """Make the bucket, or have the one that is there keep its values as long, and on as many servers, as ours.

        Its revisions begin at the present time in milliseconds: beyond all those of one that was lost.
        """
        try:
            await self._jetstream.add_stream(self._configuration(first_seq=int(time.time() * 1000)))
        except nats.js.errors.BadRequestError as error:
            if error.err_code != OTHER_CONFIGURATION:
                raise
            there = (await self._jetstream.stream_info(self._stream)).config
            ours = self._configuration(first_seq=there.first_seq)
            if (there.max_age, there.num_replicas) != (ours.max_age, ours.num_replicas):
                await self._jetstream.update_stream(ours)
        self._is_made = True

    def _configuration(self, first_seq: int | None = None) -> api.StreamConfig:
        return api.StreamConfig(
            name=self._stream,
            subjects=[self._prefix + ">"],
            storage=api.StorageType.FILE,
            max_age=self._bucket.ttl_seconds or 0,
            max_msgs_per_subject=1,
            max_bytes=MOST_BUCKET_BYTES,
            max_msg_size=MOST_VALUE_BYTES,
            discard=api.DiscardPolicy.NEW,
            duplicate_window=min(self._bucket.ttl_seconds or 120.0, 120.0),
            num_replicas=self._replicas,
            allow_direct=True,
            allow_rollup_hdrs=True,
            deny_delete=True,
            first_seq=first_seq,
        )

    async def _within_deadline(self, operation: Callable[[], Awaitable[R]]) -> R:
        """StoreUnavailable for whatever says that the store cannot be used; answers about keys go through."""
        if not self._bus.connected:
            raise StoreUnavailable(f"{self._stream}: there is no connection to NATS")
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return await operation()
        except (nats.js.errors.ServiceUnavailableError, nats.js.errors.ServerError) as error:
            raise self._unavailable(error) from error
        except nats.js.errors.APIError:
            raise
        except (nats.errors.Error, TimeoutError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"{self._stream}: {str(error) or type(error).__name__}")
