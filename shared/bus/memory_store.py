"""The key-value store of the bus inside one process."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shared.bus.key_value import Bucket, Entry, KeyValue, RevisionChanged, StoreUnavailable, follow
from shared.messages.codec import decode, encode


@dataclass(frozen=True, slots=True)
class _Kept:
    data: bytes
    revision: int
    expires_at: float


@dataclass
class MemoryStore:
    """What the server's disk is to NATS. `available = False` takes it away from everybody."""

    available: bool = True
    kept: dict[tuple[str, str], _Kept] = field(default_factory=dict)
    watchers: set[asyncio.Event] = field(default_factory=set)
    revisions: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def read(self, key: tuple[str, str]) -> _Kept | None:
        if not self.available:
            raise StoreUnavailable(f"{'.'.join(key)}: the store is away")
        kept = self.kept.get(key)
        return kept if kept is not None and asyncio.get_running_loop().time() < kept.expires_at else None

    def note_write(self) -> None:
        for written in self.watchers:
            written.set()


class MemoryKeyValue(KeyValue[Any]):
    def __init__(self, store: MemoryStore, bucket: Bucket, kind: type) -> None:
        self._store, self._bucket, self._kind = store, bucket, kind

    async def get(self, key: str) -> Entry[Any] | None:
        await asyncio.sleep(0)
        kept = self._store.read((self._bucket.name, key))
        return None if kept is None else Entry(decode(kept.data, self._kind), kept.revision)

    async def create(self, key: str, value: object) -> int:
        await asyncio.sleep(0)
        self._check(key, None)
        return self._write(key, value)

    async def update(self, key: str, value: object, revision: int) -> int:
        await asyncio.sleep(0)
        self._check(key, revision)
        return self._write(key, value)

    async def put(self, key: str, value: object) -> int:
        await asyncio.sleep(0)
        self._store.read((self._bucket.name, key))
        return self._write(key, value)

    async def delete(self, key: str, revision: int) -> None:
        await asyncio.sleep(0)
        self._check(key, revision)
        del self._store.kept[self._bucket.name, key]
        self._store.note_write()

    async def watch(self, key: str) -> AsyncGenerator[Entry[Any] | None, None]:
        written = asyncio.Event()
        self._store.watchers.add(written)
        try:
            async for entry in follow(partial(self.get, key), written):
                yield entry
        finally:
            self._store.watchers.discard(written)

    def _check(self, key: str, revision: int | None) -> None:
        kept = self._store.read((self._bucket.name, key))
        if (kept.revision if kept is not None else None) != revision:
            raise RevisionChanged(f"{self._bucket.name}.{key} is not at revision {revision}")

    def _write(self, key: str, value: object) -> int:
        revision, ttl = next(self._store.revisions), self._bucket.ttl_seconds
        expires_at = float("inf") if ttl is None else asyncio.get_running_loop().time() + ttl
        self._store.kept[self._bucket.name, key] = _Kept(encode(value), revision, expires_at)
        self._store.note_write()
        return revision
