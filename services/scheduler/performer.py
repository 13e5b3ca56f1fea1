"""Carries the dispatcher's effects out on the bus, and keeps what it must attach to them: the work itself."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from opentelemetry import context as trace_context
from opentelemetry.context import Context

from services.scheduler.campaign import Campaign
from services.scheduler.events import (
    Abort,
    Effect,
    Forget,
    Interrupt,
    Refuse,
    ReleaseKv,
    RenewKv,
    ReportInstance,
    SendDecode,
    SendPrefill,
    StartAnswer,
    StartAnswered,
)
from shared.bus.interface import Bus, BusError, BusTimeout, MessageTooBig
from shared.messages.codec import MalformedMessage
from shared.messages.handoff import KvHandle, KvReleased, KvRenewed
from shared.messages.requests import AbortRequest, Refused, SubmitRequest
from shared.messages.tokens import RequestInterrupted
from shared.messages.work import StartDecode, Started, StartPrefill
from shared.specs.ids import InstanceId, RequestId, Role
from shared.telemetry import traces
from shared.telemetry.metrics import SchedulerMetrics

log = structlog.get_logger()

MOST_STARTS = 256  # waiting for their answer at once


@dataclass(frozen=True, slots=True)
class Parcel:
    """What an instance has to be sent, kept until one has taken it."""

    work: SubmitRequest
    kv: KvHandle | None = None
    trace: Context = field(default_factory=trace_context.get_current)
    arrived_ns: int = field(default_factory=time.time_ns)


class Performer:
    """Starts run beside each other, each within its deadline; everything else is published in order."""

    def __init__(
        self,
        bus: Bus,
        instance: InstanceId,
        metrics: SchedulerMetrics,
        answered: Callable[[StartAnswered], object],
        start_seconds: float,
        campaign: Campaign,
    ) -> None:
        """`answered` is told what came of each start. What others hear is said only while `campaign` leads."""
        self._campaign = campaign
        self._bus, self._instance, self._metrics = bus, instance, metrics
        self._answered, self._start_seconds = answered, start_seconds
        self._parcels: dict[tuple[RequestId, int], Parcel] = {}
        self._starts: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MOST_STARTS)
        roles: tuple[Role, ...] = ("prefill", "decode")
        self._dispatched = {role: metrics.dispatched.labels(role) for role in roles}

    @property
    def parcels(self) -> int:
        return len(self._parcels)

    def keep(self, parcel: Parcel) -> None:
        """Before the dispatcher hears of it. What is said twice counts as it did first, as it does there."""
        key = (parcel.work.request, parcel.work.attempt)
        known = self._parcels.get(key)
        if known is None or (known.kv is None and parcel.kv is not None):
            self._parcels[key] = parcel

    def let_go(self, request: RequestId, attempt: int) -> None:
        self._parcels.pop((request, attempt), None)

    def perform(self, effect: Effect) -> None:
        match effect:
            case SendPrefill() | SendDecode():
                self._dispatched["prefill" if isinstance(effect, SendPrefill) else "decode"].inc()
                start = asyncio.create_task(self._start(effect, self._parcels[effect.request, effect.attempt]))
                self._starts.add(start)
                start.add_done_callback(self._start_ended)
            case Interrupt():
                self._interrupt(effect)
            case Abort():
                self._send(AbortRequest.SUBJECT, AbortRequest(request=effect.request, attempt=effect.attempt))
            case ReleaseKv():
                released = KvReleased(request=effect.request, attempt=effect.attempt, puller=self._instance)
                self._send(KvReleased.SUBJECT.format(instance=effect.source), released)
            case RenewKv():
                self._send(KvRenewed.SUBJECT.format(instance=effect.source), KvRenewed(requests=effect.requests))
            case Forget():
                self.let_go(effect.request, effect.attempt)
            case Refuse():
                self._metrics.refused(effect.reason)
            case ReportInstance():
                log.info("instance_changed", instance_id=effect.instance, state=effect.state)

    async def give_up_starts(self) -> None:
        """Those that still wait for an answer. Nobody is told what came of them."""
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)

    def _start_ended(self, start: asyncio.Task[None]) -> None:
        self._starts.discard(start)
        if not start.cancelled() and (error := start.exception()) is not None:
            log.error("start_answer_failed", exc_info=error)

    def _interrupt(self, effect: Interrupt) -> None:
        if not effect.wanted:
            self._metrics.interrupted.inc()
            log.warning("request_interrupted", request_id=effect.request, attempt=effect.attempt, reason=effect.reason)
        message = RequestInterrupted(request=effect.request, attempt=effect.attempt, reason=effect.reason)
        self._send(RequestInterrupted.SUBJECT.format(gateway=effect.gateway), message)

    def _send(self, subject: str, message: object) -> None:
        try:
            self._bus.post(subject, message)
        except BusError as error:  # an interruption is missed by its gateway, a lease by its holder, both by a clock
            log.warning("message_not_sent", subject=subject, error=str(error))

    async def _start(self, effect: SendPrefill | SendDecode, parcel: Parcel) -> None:
        try:
            async with self._slots:
                sent_ns = time.time_ns()
                with traces.within(parcel.trace):
                    answer = await self._ask(effect, parcel)
            if answer == "started":
                self._note_started(effect, parcel, sent_ns)
        except Exception:  # whatever it was: a request that nobody works on must not look placed
            log.exception("start_failed", instance_id=effect.instance, request_id=effect.request)
            answer = "unanswered"
        self._answered(
            StartAnswered(
                now=time.monotonic(),
                instance=effect.instance,
                request=effect.request,
                attempt=effect.attempt,
                answer=answer,
            )
        )

    async def _ask(self, effect: SendPrefill | SendDecode, parcel: Parcel) -> StartAnswer:
        if not self._campaign.leads():
            return "unreachable"
        term = self._campaign.term
        if isinstance(effect, SendPrefill):
            subject, message = StartPrefill.SUBJECT, StartPrefill(work=parcel.work, term=term)
        else:
            subject, message = StartDecode.SUBJECT, StartDecode(work=parcel.work, kv=parcel.kv, term=term)
        to = subject.format(instance=effect.instance)
        try:
            reply = await self._bus.request(to, message, Started, Refused, timeout_seconds=self._start_seconds)
        except (BusTimeout, MalformedMessage):
            return "unanswered"
        except MessageTooBig:
            return "rejected"
        except BusError:
            return "unreachable"
        if isinstance(reply, Started):
            return "started"
        log.info("start_refused", instance_id=effect.instance, request_id=effect.request, reason=reply.reason)
        return "full" if reply.reason in ("queue_full", "draining", "no_instance", "deposed") else "rejected"

    def _note_started(self, effect: SendPrefill | SendDecode, parcel: Parcel, sent_ns: int) -> None:
        """The instance has it now, and the wait for a first instance is over."""
        key = (effect.request, effect.attempt)
        if self._parcels.get(key) is parcel:  # its KV may be here already
            del self._parcels[key]
        if parcel.kv is None:
            self._metrics.queue_seconds.observe((sent_ns - parcel.arrived_ns) / 1e9)
            attributes = {
                traces.REQUEST_ID: effect.request,
                traces.ATTEMPT: effect.attempt,
                traces.CONTEXT_TOKENS: parcel.work.context_tokens,
                traces.INSTANCE: effect.instance,
            }
            traces.record_span(traces.SCHEDULER_QUEUE, parcel.trace, parcel.arrived_ns, sent_ns, attributes)
