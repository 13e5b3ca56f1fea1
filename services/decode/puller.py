"""Moves a context's KV from the prefill instance that holds it into this pool (paper section 4.3: decode pulls)."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from services.decode.links import Links
from services.decode.sequence import Arrival
from shared.bus.interface import Bus, BusError
from shared.engine.kv_cache import KvCache
from shared.kv.layout import Run, runs
from shared.messages.codec import MalformedMessage
from shared.messages.handoff import Gone, KvReleased, KvRenewed, PullBlocks, Sending
from shared.specs.ids import BlockId, InstanceId, RequestId
from shared.telemetry import traces
from shared.telemetry.metrics import DecodeMetrics
from shared.transport.checksum import checksum
from shared.transport.interface import TransferFailed, TransferReport, Transport

log = structlog.get_logger()

ASK_TIMEOUT_SECONDS = 2.0
RENEWALS_PER_LEASE = 3
RENEWAL_TICK_SECONDS = 0.25
RETRY_PAUSE_SECONDS = 0.2  # the other side needs a moment to see that the first try has ended


class KvGone(Exception):
    """The source does not hold the KV any more, or cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullLimits:
    at_once: int  # transfers in flight
    seconds: float  # for one transfer; shorter than the lease
    message_bytes: int  # of one transport message at most
    checksum: bool


class Puller:
    def __init__(
        self,
        bus: Bus,
        transport: Transport,
        cache: KvCache,
        links: Links,
        metrics: DecodeMetrics,
        instance: InstanceId,
        limits: PullLimits,
    ) -> None:
        self._bus, self._transport, self._cache, self._links = bus, transport, cache, links
        self._metrics, self._instance, self._limits = metrics, instance, limits
        self._most_blocks = max(1, limits.message_bytes // cache.block_bytes)
        self._slots = asyncio.Semaphore(limits.at_once)

    async def pull(self, arrival: Arrival, blocks: Sequence[BlockId]) -> None:
        """Fill `blocks` with the context's KV and let the source free its copy.

        TransferFailed or KvGone if it cannot be had; either way nothing writes into `blocks` after this has ended.
        """
        kv = arrival.kv
        assert kv is not None
        pieces = runs(kv.blocks, blocks[: len(kv.blocks)], self._most_blocks)
        started_ns = time.time_ns()
        async with self._slots:
            try:
                if arrival.dropped:
                    raise KvGone("it was given up before its turn came")
                report = await self._move(arrival, pieces)
            except TransferFailed as error:
                if not error.retryable or arrival.dropped:
                    raise
                log.info("kv_pull_retried", request_id=arrival.work.request, error=str(error))
                await asyncio.sleep(RETRY_PAUSE_SECONDS)
                report = await self._move_again(arrival, pieces)
            finally:
                await self.release(arrival)
        attributes = {
            traces.KV_BLOCKS: len(kv.blocks),
            traces.KV_BYTES: report.bytes,
            traces.KV_TRANSPORT: report.transport,
            traces.KV_MOVE_SECONDS: report.move_seconds,
        }
        self._metrics.pull_seconds.observe((time.time_ns() - started_ns) / 1e9)
        arrival.record_span(traces.KV_TRANSFER, started_ns, attributes)

    async def release(self, arrival: Arrival) -> None:
        """Tell the source that its copy is not wanted any more. If that is lost, the lease ends it."""
        if arrival.kv is None:
            return
        work = arrival.work
        message = KvReleased(request=work.request, attempt=work.attempt, puller=self._instance)
        try:
            await self._bus.publish(KvReleased.SUBJECT.format(instance=arrival.kv.source), message)
        except BusError as error:
            log.warning("kv_release_not_sent", request_id=work.request, error=str(error))

    async def renew(self, waiting: Callable[[], Sequence[Arrival]]) -> None:
        """Keep the leases of everything that waits here, for ever: each as its holder has set it."""
        while True:
            await asyncio.sleep(RENEWAL_TICK_SECONDS)
            now = time.monotonic()
            by_source: dict[InstanceId, list[tuple[RequestId, int]]] = defaultdict(list)
            for arrival in waiting():
                kv = arrival.kv
                if kv is not None and now - arrival.renewed_at >= kv.lease_seconds / RENEWALS_PER_LEASE:
                    arrival.renewed_at = now
                    by_source[kv.source].append((arrival.work.request, arrival.work.attempt))
            for source, requests in by_source.items():
                try:
                    message = KvRenewed(requests=tuple(requests))
                    await self._bus.publish(KvRenewed.SUBJECT.format(instance=source), message)
                except BusError as error:
                    log.warning("kv_renewal_not_sent", source=source, error=str(error))

    async def _move(self, arrival: Arrival, pieces: Sequence[Run]) -> TransferReport:
        kv, limits = arrival.kv, self._limits
        assert kv is not None
        buffers = [self._cache.view(piece.target, piece.count) for piece in pieces]
        sums: tuple[int, ...] = ()

        async def ask(address: bytes, transfer: int) -> None:
            nonlocal sums
            sums = (await self._ask(arrival, pieces, address, transfer)).checksums

        address = self._links.address_of(kv.source)
        try:
            report = await self._transport.receive(kv.source, address, buffers, ask, timeout_seconds=limits.seconds)
        except TransferFailed:
            self._metrics.transfers_failed.inc()
            raise
        self._metrics.kv_received(report.transport, report.bytes, report.move_seconds)
        if limits.checksum and sums != tuple(checksum(buffer) for buffer in buffers):
            raise TransferFailed(kv.source, "the bytes that arrived are not the bytes that were sent", retryable=True)
        return report

    async def _move_again(self, arrival: Arrival, pieces: Sequence[Run]) -> TransferReport:
        """The second try. If it fails too, the link is in doubt: a broken one would attract requests, being idle."""
        assert arrival.kv is not None
        try:
            return await self._move(arrival, pieces)
        except TransferFailed:
            self._links.doubt(arrival.kv.source)
            raise

    async def _ask(self, arrival: Arrival, pieces: Sequence[Run], address: bytes, transfer: int) -> Sending:
        work, kv = arrival.work, arrival.kv
        assert kv is not None
        message = PullBlocks(
            request=work.request,
            attempt=work.attempt,
            puller=self._instance,
            address=address,
            transfer=transfer,
            runs=tuple((piece.source, piece.count) for piece in pieces),
            checksum=self._limits.checksum,
            secret=kv.secret,
        )
        subject = PullBlocks.SUBJECT.format(instance=kv.source)
        try:
            with traces.within(arrival.trace):
                reply = await self._bus.request(subject, message, Sending, Gone, timeout_seconds=ASK_TIMEOUT_SECONDS)
        except (BusError, MalformedMessage) as error:
            raise KvGone(f"{kv.source} cannot be asked: {error}") from error
        if isinstance(reply, Gone):
            raise KvGone(f"{kv.source}: {reply.reason}")
        return reply
