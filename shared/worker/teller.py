"""Telling the gateways: one message per step and gateway, interruptions, and what was missed when they ask."""

import asyncio
import time

import structlog

from shared.bus.interface import Bus, BusError, Subscription
from shared.messages.requests import SubmitRequest
from shared.messages.sealed import seal
from shared.messages.tokens import Finish, RequestInterrupted, ResumedTokens, ResumeTokens, Sealed, TokenLogprobs
from shared.policy.token_log import Recipient, TokenLog
from shared.specs.ids import InstanceId, RequestId, role_of

log = structlog.get_logger()


class Teller:
    """The TokenLog of this instance on the bus. What the bus loses, the gateways ask for again."""

    def __init__(self, bus: Bus, instance: InstanceId) -> None:
        self._bus = bus
        self._instance = instance
        self._log = TokenLog(instance)
        self._flushing = asyncio.Lock()  # batches of two flushes must not overtake each other
        self._settled = asyncio.Event()
        self._settled.set()

    async def listen(self) -> Subscription:
        subject = ResumeTokens.SUBJECT.format(role=role_of(self._instance), instance=self._instance)
        return await self._bus.subscribe(subject, self._resume, ResumeTokens)

    def begin(self, work: SubmitRequest) -> None:
        self._log.begin(work.request, work.attempt, Recipient(work.gateway, work.seal_key), len(work.generated))
        self._settled.clear()

    def note(self, request: RequestId, token: int, logprobs: TokenLogprobs | None) -> None:
        self._log.note(request, token, logprobs)

    def tell(self, request: RequestId, token: int, logprobs: TokenLogprobs | None, finish: Finish | None) -> None:
        """Queue a token for the next `flush`."""
        self._log.tell(request, token, logprobs, finish)
        if finish is not None:
            self.end(request, finish)

    def end(self, request: RequestId, finish: Finish) -> None:
        self._log.end(request, finish, time.monotonic())
        self._settle()

    def forget(self, request: RequestId, attempt: int) -> None:
        """Somebody else answers for it from now on."""
        self._log.forget(request, attempt)
        self._settle()

    async def settled(self) -> None:
        """Wait until no request here is without its end, and the ends are told."""
        await self._settled.wait()
        await self.flush()

    async def flush(self) -> None:
        """Publish what has been queued. A batch that cannot be sent stays in the log, and the gateway will ask."""
        async with self._flushing:
            self._log.expire(time.monotonic())
            for to, batch in self._log.batches():
                try:
                    await self._bus.publish(Sealed.SUBJECT.format(gateway=to.gateway), seal(batch, to.seal_key))
                except BusError as error:
                    log.warning("tokens_not_sent", gateway=to.gateway, rows=len(batch.rows), error=str(error))

    async def interrupt(self, work: SubmitRequest, reason: str, *, failed: bool = False) -> None:
        """Give the request back to its gateway, which submits it again with what it has; `failed`: for elsewhere."""
        self.forget(work.request, work.attempt)
        await self.flush()  # first what it has: else that is computed once more
        failed_at = self._instance if failed else None
        message = RequestInterrupted(request=work.request, attempt=work.attempt, reason=reason, failed_at=failed_at)
        log.warning("request_interrupted", request_id=work.request, attempt=work.attempt, reason=reason)
        try:
            await self._bus.publish(RequestInterrupted.SUBJECT.format(gateway=work.gateway), message)
        except BusError:  # the gateway will ask, nobody will know the request, and it is submitted again all the same
            log.warning("interruption_not_sent", request_id=work.request)

    def _settle(self) -> None:
        if not self._log.live:
            self._settled.set()

    async def _resume(self, message: ResumeTokens) -> Sealed | ResumedTokens:
        resumed, to = self._log.resume(message)
        return seal(resumed, to.seal_key) if to else resumed
