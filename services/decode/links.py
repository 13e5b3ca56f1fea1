"""Which prefill instances this one can pull from: known by their beats, tried by a transfer before they are used."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from shared.bus.interface import Bus, BusError
from shared.engine.kv_cache import KvCache
from shared.messages.codec import MalformedMessage
from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.messages.instances import Beat, Link
from shared.specs.ids import InstanceId
from shared.transport.interface import TransferFailed, Transport
from shared.transport.selftest import test_link

log = structlog.get_logger()

RETRY_SECONDS = 5.0
ASK_TIMEOUT_SECONDS = 2.0


@dataclass(slots=True)
class Peer:
    beat: Beat
    link: Link | None = None  # None: not tried yet
    test: asyncio.Task[None] | None = None
    try_again_at: float = 0.0


class Links:
    """One transfer self-test per prefill instance, repeated while it fails."""

    def __init__(self, bus: Bus, transport: Transport, cache: KvCache, instance: InstanceId, kv_format: str) -> None:
        self._bus, self._transport, self._cache = bus, transport, cache
        self._instance, self._kv_format = instance, kv_format
        self._peers: dict[InstanceId, Peer] = {}
        self._changed = asyncio.Event()

    def reports(self) -> tuple[Link, ...]:
        return tuple(peer.link for peer in self._peers.values() if peer.link is not None)

    def address_of(self, source: InstanceId) -> bytes:
        peer = self._peers.get(source)
        if peer is None:
            raise TransferFailed(source, "it is not known here, or lost", retryable=False)
        return peer.beat.address

    async def heard(self, beat: Beat) -> None:
        if beat.role != "prefill":
            return
        peer = self._peers.setdefault(beat.instance, Peer(beat))
        peer.beat = beat
        untried = peer.link is None or (not peer.link.ok and time.monotonic() >= peer.try_again_at)
        if beat.ready and untried and peer.test is None:
            peer.test = asyncio.create_task(self._test(peer))

    async def changed(self) -> None:
        """Wait until a report changed."""
        await self._changed.wait()
        self._changed.clear()

    def doubt(self, source: InstanceId) -> None:
        """Transfers from there fail: try the link again now, and report what comes of it."""
        peer = self._peers.get(source)
        if peer is not None and peer.test is None:
            peer.test = asyncio.create_task(self._test(peer))

    async def lost(self, instance: InstanceId) -> None:
        peer = self._peers.pop(instance, None)
        if peer is None:
            return
        if peer.test is not None:
            peer.test.cancel()
        await self._transport.forget(instance)
        self._changed.set()

    async def close(self) -> None:
        tests = [peer.test for peer in self._peers.values() if peer.test is not None]
        for test in tests:
            test.cancel()
        await asyncio.gather(*tests, return_exceptions=True)

    async def _test(self, peer: Peer) -> None:
        beat = peer.beat
        try:
            if beat.kv_format != self._kv_format:
                detail = f"its KV blocks are {beat.kv_format}, here they are {self._kv_format}"
                peer.link = Link(peer=beat.instance, ok=False, detail=detail)
            else:
                peer.link = await test_link(
                    self._transport,
                    beat.instance,
                    beat.address,
                    self._ask_for(beat),
                    self._cache.scratch,
                    self._instance,
                )
        finally:
            peer.test = None
        peer.try_again_at = time.monotonic() + RETRY_SECONDS
        level = log.info if peer.link.ok else log.error
        level(
            "kv_link_tested",
            peer=beat.instance,
            ok=peer.link.ok,
            transport=peer.link.transport,
            gigabytes_per_second=round(peer.link.gigabytes_per_second, 2),
            detail=peer.link.detail,
        )
        self._changed.set()

    def _ask_for(self, beat: Beat):
        subject = LinkTest.SUBJECT.format(instance=beat.instance)

        async def ask(message: LinkTest) -> LinkTestAnswer:
            try:
                return await self._bus.request(subject, message, LinkTestAnswer, timeout_seconds=ASK_TIMEOUT_SECONDS)
            except (BusError, MalformedMessage) as error:
                return LinkTestAnswer(status="failed", detail=str(error))

        return ask
