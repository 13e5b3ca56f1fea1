"""Holds computed KV until the decode side has it.

Offers it to the scheduler, sends it when asked, frees it on release or when its lease ends. Pulled, not pushed, so that
prefill memory is the queue (paper section 4.3).
"""

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from opentelemetry.context import Context

from shared.bus.interface import Bus, BusError
from shared.engine.kv_cache import KvCache
from shared.engine.pieces import Drawn
from shared.kv.layout import lie_within
from shared.kv.ledger import Ledger, Owner, State
from shared.messages.codec import MalformedMessage
from shared.messages.handoff import (
    Gone,
    KvExpired,
    KvHandle,
    KvNoted,
    KvReady,
    KvReleased,
    KvRenewed,
    PullBlocks,
    Sending,
)
from shared.messages.requests import SubmitRequest
from shared.specs.ids import InstanceId
from shared.telemetry import traces
from shared.telemetry.metrics import PrefillMetrics
from shared.transport.checksum import checksum
from shared.transport.interface import Transport, TransportError
from shared.worker.teller import Teller

log = structlog.get_logger()

OFFER_TIMEOUT_SECONDS = 1.0
OFFER_PAUSE_SECONDS = 0.2
SWEEP_SECONDS = 0.25
SECRET_BYTES = 16
SETTLE_SECONDS = 2.0  # by then a decode instance that has taken a request has told the new scheduler so


@dataclass(slots=True)
class Parcel:
    """A held context and whoever still works on handing it over."""

    ready: KvReady
    trace: Context
    offer: asyncio.Task[None]
    held_since: float = field(default_factory=time.monotonic)
    sending: asyncio.Task[None] | None = None
    ended: bool = False  # given up; only a send that still runs keeps it here

    @property
    def work(self) -> SubmitRequest:
        return self.ready.work


class Handoff:
    """Owns every request whose KV is computed here and not yet released. As many as fit into the pool."""

    def __init__(
        self,
        bus: Bus,
        transport: Transport,
        ledger: Ledger,
        cache: KvCache,
        teller: Teller,
        metrics: PrefillMetrics,
        instance: InstanceId,
        *,
        lease_seconds: float,
        transfer_seconds: float,
        on_freed: Callable[[], None],
    ) -> None:
        self._bus, self._transport, self._ledger, self._cache = bus, transport, ledger, cache
        self._teller, self._metrics, self._instance = teller, metrics, instance
        self._lease_seconds, self._transfer_seconds = lease_seconds, transfer_seconds
        self._on_freed = on_freed
        self._parcels: dict[Owner, Parcel] = {}
        self._offer_again_at = float("inf")

    def works(self) -> list[SubmitRequest]:
        """The requests this instance still answers for."""
        return [parcel.work for parcel in self._parcels.values() if not parcel.ended]

    def offer(self, work: SubmitRequest, drawn: Drawn, trace: Context) -> None:
        """The owner is held in the ledger from now on, under a lease; tell the scheduler until it has noted it."""
        owner = Owner(work.request, work.attempt)
        holding = self._ledger.get(owner)
        assert holding is not None
        self._ledger.lease(owner, time.monotonic() + self._lease_seconds)
        kv = KvHandle(
            source=self._instance,
            blocks=tuple(holding.blocks),
            tokens=work.context_tokens,
            lease_seconds=self._lease_seconds,
            first_token=drawn.token,
            first_logprobs=drawn.logprobs,
            secret=secrets.token_bytes(SECRET_BYTES),
        )
        ready = KvReady(work=work, kv=kv)
        self._parcels[owner] = Parcel(ready, trace, asyncio.create_task(self._offer(owner, ready, trace)))

    def end(self, owner: Owner) -> None:
        """Released, expired or aborted: stop offering; the blocks are free now, or when a running send has ended."""
        parcel = self._parcels.get(owner)
        if parcel is None:
            return
        parcel.offer.cancel()
        if not parcel.ended:
            self._metrics.held_seconds.observe(time.monotonic() - parcel.held_since)
        parcel.ended = True
        if self._ledger.release(owner):
            del self._parcels[owner]
            self._on_freed()

    def scheduler_changed(self) -> None:
        """The new one may not know what the former had noted: offer it again once everybody's beats are heard."""
        self._offer_again_at = time.monotonic() + SETTLE_SECONDS

    async def pull(self, message: PullBlocks) -> Sending | Gone:
        owner = Owner(message.request, message.attempt)
        holding, parcel = self._ledger.get(owner), self._parcels.get(owner)
        if holding is None or parcel is None or holding.state is not State.HELD:
            return Gone(request=owner.request, attempt=owner.attempt, reason="not held here any more")
        if not hmac.compare_digest(message.secret, parcel.ready.kv.secret):
            log.error("kv_pull_without_its_secret", request_id=owner.request, puller=message.puller)
            return Gone(request=owner.request, attempt=owner.attempt, reason="this is not the secret of its handle")
        if not lie_within(message.runs, holding.blocks):
            return Gone(request=owner.request, attempt=owner.attempt, reason="these blocks are not of this request")
        buffers = [self._cache.view(first, count) for first, count in message.runs]
        sums = tuple(checksum(buffer) for buffer in buffers) if message.checksum else ()
        self._ledger.move(owner, State.PULLING)
        parcel.sending = asyncio.create_task(self._send(owner, message, buffers))
        return Sending(request=owner.request, attempt=owner.attempt, checksums=sums)

    async def released(self, message: KvReleased) -> None:
        """Of what is not held here, a release says nothing: it is late, or of an attempt that is still computed."""
        owner = Owner(message.request, message.attempt)
        if owner in self._parcels:
            self._teller.forget(message.request, message.attempt)
            self.end(owner)

    async def renewed(self, message: KvRenewed) -> None:
        until = time.monotonic() + self._lease_seconds
        for request, attempt in message.requests:
            self._ledger.lease(Owner(request, attempt), until)

    async def sweep(self) -> None:
        """Free what nobody came for, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            if now >= self._offer_again_at:
                self._offer_again()
            owners = self._ledger.expired(now)
            for owner in owners:
                self._metrics.leases_expired.inc()
                log.warning("kv_lease_expired", request_id=owner.request, attempt=owner.attempt)
                self._teller.forget(owner.request, owner.attempt)
                self.end(owner)
            for owner in owners:
                expired = KvExpired(request=owner.request, attempt=owner.attempt, source=self._instance)
                try:
                    await self._bus.publish(KvExpired.SUBJECT, expired)
                except BusError as error:
                    log.warning("kv_expiry_not_sent", request_id=owner.request, error=str(error))

    async def close(self) -> None:
        """End every offer and every send, and wait until nothing reads the pool any more."""
        tasks = [t for parcel in self._parcels.values() for t in (parcel.offer, parcel.sending) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _offer(self, owner: Owner, ready: KvReady, trace: Context) -> None:
        while owner in self._ledger:
            try:
                with traces.within(trace):
                    await self._bus.request(KvReady.SUBJECT, ready, KvNoted, timeout_seconds=OFFER_TIMEOUT_SECONDS)
                return
            except (BusError, MalformedMessage) as error:  # no scheduler just now: the lease bounds how long we try
                log.info("kv_ready_not_noted", request_id=owner.request, error=str(error))
                await asyncio.sleep(OFFER_PAUSE_SECONDS)

    def _offer_again(self) -> None:
        self._offer_again_at = float("inf")
        for owner, parcel in self._parcels.items():
            if parcel.offer.done() and not parcel.ended and parcel.sending is None:
                parcel.offer = asyncio.create_task(self._offer(owner, parcel.ready, parcel.trace))

    async def _send(self, owner: Owner, message: PullBlocks, buffers: list) -> None:
        try:
            await self._transport.send(
                message.puller, message.address, message.transfer, buffers, timeout_seconds=self._transfer_seconds
            )
        except TransportError as error:  # the puller sees it too, and pulls again or gives up
            log.warning("kv_send_failed", request_id=owner.request, error=str(error))
        finally:
            if not self._ledger.move(owner, State.HELD):
                self._parcels.pop(owner, None)
                self._on_freed()
