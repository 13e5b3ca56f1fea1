"""Every live request of this gateway, and the bus: performs what `RequestLife` decides."""

import asyncio
import contextvars
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from msgspec.structs import replace
from opentelemetry import trace

from services.gateway import events
from services.gateway.aborts import Aborts
from services.gateway.errors import ApiError, overloaded, took_too_long
from services.gateway.events import Ask, Ended, Event, GivenUp, SchedulerChanged, Submit, Unanswered
from services.gateway.live import LiveRequest, News
from services.gateway.outbox import Outbox
from services.gateway.recent import EndedRequest, RecentRequests
from services.gateway.requests import Patience, RequestLife
from services.gateway.resync import Resync
from services.gateway.targets import NO_TARGETS, Admission, LatencyTargets
from services.gateway.topology import Topology
from shared.bus.interface import Bus, BusError
from shared.messages.codec import MalformedMessage
from shared.messages.instances import Beat, Load
from shared.messages.requests import AbortRequest, Accepted, Refused, RequestEnded, SubmitRequest
from shared.messages.sealed import new_seal_key, unseal
from shared.messages.tokens import RequestInterrupted, Sealed, TokenBatch
from shared.policy.terms import Terms
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import GatewayMetrics

log = structlog.get_logger()

TICK_SECONDS = 0.25
ANSWER_SECONDS = 2.0  # for the scheduler to answer a submission


class GatewayService:
    def __init__(
        self,
        bus: Bus,
        metrics: GatewayMetrics,
        instance: InstanceId,
        model: str,
        patience: Patience,
        deadline_seconds: float,
        most_requests: int,
        *,
        admission: Admission = "queue",
    ) -> None:
        self._admission = admission
        self.instance = instance
        self.metrics = metrics
        self.topology = Topology(model)
        self.recent = RecentRequests()
        self.outbox = Outbox()
        self.draining = False
        self._bus, self._model, self._patience = bus, model, patience
        self._deadline_seconds, self._most_requests = deadline_seconds, most_requests
        self._live: dict[RequestId, LiveRequest] = {}
        self._aborts = Aborts()
        self._terms = Terms()
        self._seal_key = new_seal_key()
        self._resync = Resync(bus, instance, self._seal_key, self.topology, self._feed_life)
        self._tasks: set[asyncio.Task[None]] = set()

    # --- for the HTTP side

    def missing(self) -> list[str]:
        """What keeps a request that comes now from being served; empty if nothing does."""
        missing = ["this gateway is shutting down"] if self.draining else []
        if not self._bus.connected:
            missing.append("there is no connection to NATS")
        return missing + self.topology.missing(time.monotonic())

    def begin(
        self,
        request: RequestId,
        prompt: tuple[int, ...],
        sampling: Sampling,
        arrived_at: float,
        news: News,
        targets: LatencyTargets = NO_TARGETS,
    ) -> LiveRequest:
        """Submit a new request. `arrived_at`: of its last byte, monotonic seconds. ApiError if there are too many."""
        if len(self._live) >= self._most_requests:
            raise overloaded(f"This gateway already has {len(self._live)} requests", retry_after_seconds=1.0)
        life = RequestLife(request, self.instance, self._model, prompt, sampling, self._patience)
        live = self._live[request] = LiveRequest(life, arrived_at, self._deadline_seconds, targets, news)
        self._perform(live, life.begin(time.monotonic()))
        return live

    def feed(self, live: LiveRequest, event: Event) -> None:
        self._perform(live, live.life.step(event, time.monotonic()))

    @property
    def live_requests(self) -> int:
        return len(self._live)

    def give_up_all(self, error: ApiError) -> None:
        for live in list(self._live.values()):
            self.feed(live, GivenUp(error, "failed"))

    def describe(self, number: int) -> Beat:
        return Beat(
            instance=self.instance,
            role="gateway",
            number=number,
            model=self._model,
            draining=self.draining,
            load=Load(running=len(self._live)),
        )

    # --- life

    async def start(self) -> None:
        """Listen: afterwards no beat and no token is missed."""
        tokens = Sealed.SUBJECT.format(gateway=self.instance)
        await self._bus.hear(tokens, self._on_told, Sealed, RequestInterrupted)
        await self._bus.hear(Beat.SUBJECT.format(role="*", instance="*"), self._on_beat, Beat)
        self._bus.on_reconnect(self._on_reconnect)

    async def run(self) -> None:
        """Until cancelled: asks about silent requests, ends those that take too long, repeats aborts."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._resync.run())
            tasks.create_task(self._tick())

    async def close(self) -> None:
        """Tell the workers what is still to be stopped. Whoever answers clients has ended before."""
        self._send_aborts(time.monotonic())
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ANSWER_SECONDS)
        for task in self._tasks:
            task.cancel()

    # --- from the bus

    def _on_told(self, message: Sealed | RequestInterrupted) -> None:
        if isinstance(message, RequestInterrupted):
            self._on_tokens(message)
            return
        try:
            batch = unseal(message, self._seal_key, TokenBatch)
        except MalformedMessage as error:
            self._bus.troubles.note("bus_malformed_message", error, Sealed.SUBJECT.format(gateway=self.instance))
        else:
            self._on_tokens(batch)

    def _on_tokens(self, message: TokenBatch | RequestInterrupted) -> None:
        if isinstance(message, TokenBatch) and self._resync.is_gap(message):
            self._ask_about_all()
        now = time.monotonic()
        for row in message.rows if isinstance(message, TokenBatch) else (message,):
            live = self._live.get(row.request)
            if live is None or row.attempt < live.life.attempt:
                self._aborts.see(row, now)
            else:
                self._perform(live, live.life.step(row, now))
                if isinstance(row, RequestInterrupted) and live.life.end is not None:  # why is not for the client
                    log.warning("request_given_up", request_id=row.request, attempt=row.attempt, reason=row.reason)

    def _on_beat(self, beat: Beat) -> None:
        if beat.instance == self.instance:
            self._resync.heard_ourselves(time.monotonic())
        self.topology.note(beat, time.monotonic())
        if self._terms.heard(beat):
            for live in list(self._live.values()):
                self.feed(live, SchedulerChanged())

    async def _on_reconnect(self) -> None:
        self._resync.reconnected(time.monotonic())
        self._ask_about_all()

    def _ask_about_all(self) -> None:
        self._resync.ask_about(live.life for live in self._live.values())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for live in list(self._live.values()):
                if now >= live.deadline_at:
                    self.feed(live, GivenUp(took_too_long(self._deadline_seconds), "failed"))
                elif live.life.is_silent(now):
                    self._resync.ask_about((live.life,))
            self._send_aborts(now)

    # --- effects

    def _feed_life(self, life: RequestLife, event: Event) -> None:
        live = self._live.get(life.request)
        if live is not None:
            self.feed(live, event)

    def _perform(self, live: LiveRequest, effects: Sequence[object]) -> None:
        for effect in effects:
            match effect:
                case events.News():
                    live.news.set()
                case Submit():
                    if effect.attempt > live.newest_attempt:
                        live.newest_attempt = effect.attempt
                        self.metrics.resubmitted.inc()
                    self._spawn(self._submit(live, effect), live.context)
                case Ask():
                    self._resync.ask_about((live.life,))
                case Ended():
                    self._end(live, effect)

    async def _submit(self, live: LiveRequest, submit: Submit) -> None:
        if submit.pause_seconds:
            await asyncio.sleep(submit.pause_seconds)
        if live.life.attempt != submit.attempt or not live.life.is_offered:
            return
        work = self._work(live)
        try:
            answer = await self._bus.request(
                SubmitRequest.SUBJECT, work, Accepted, Refused, timeout_seconds=ANSWER_SECONDS
            )
        except (BusError, MalformedMessage) as error:
            log.warning("submit_unanswered", request_id=work.request, attempt=work.attempt, error=str(error))
            answer = Unanswered(work.attempt)
        except Exception:  # whatever it was: its client must not wait for an answer that nobody will give
            log.exception("submit_failed", request_id=work.request, attempt=work.attempt)
            answer = Unanswered(work.attempt)
        self.feed(live, answer)

    def _work(self, live: LiveRequest) -> SubmitRequest:
        work, ttft_seconds = replace(live.life.work(), seal_key=self._seal_key), live.targets.ttft_seconds
        if self._admission != "slo" or ttft_seconds is None or live.life.taken:
            return work
        left_seconds = ttft_seconds - (time.monotonic() - live.arrived_at)
        return replace(work, first_token_within=max(0.001, left_seconds))

    def _end(self, live: LiveRequest, ended: Ended) -> None:
        life = live.life
        del self._live[life.request]
        if ended.abort:
            self._aborts.begin(life.request, life.attempt, time.monotonic())
            self._send_aborts(time.monotonic())
        message = live.ended(self.instance)
        if ended.taken:
            live.context.copy().run(self._post, RequestEnded.SUBJECT, message)
        live.context.copy().run(self._note_end, message, live.targets, time.monotonic() - live.arrived_at)

    def _note_end(self, ended: RequestEnded, targets: LatencyTargets, total_seconds: float) -> None:
        self.metrics.request_ended(
            ended.outcome,
            prompt_tokens=ended.prompt_tokens,
            output_tokens=ended.output_tokens,
            ttft_seconds=ended.ttft_seconds,
            tpot_seconds=ended.tpot_seconds,
            total_seconds=total_seconds,
        )
        verdict = targets.judge(ended.outcome, ended.ttft_seconds, ended.tpot_seconds)
        if verdict is not None:
            self.metrics.targets_judged(verdict, targets.origin)
        span = trace.get_current_span().get_span_context()
        self.recent.note(
            EndedRequest(
                request=ended.request,
                trace=f"{span.trace_id:032x}" if span.is_valid else "",
                ended_at=time.time(),
                outcome=ended.outcome,
                attempts=ended.attempt + 1,
                prompt_tokens=ended.prompt_tokens,
                output_tokens=ended.output_tokens,
                ttft_seconds=ended.ttft_seconds,
                tpot_seconds=ended.tpot_seconds,
                total_seconds=total_seconds,
                verdict=verdict,
            )
        )
        log.info(
            "request_ended",
            request_id=ended.request,
            model=self._model,
            outcome=ended.outcome,
            attempts=ended.attempt + 1,
            prompt_tokens=ended.prompt_tokens,
            output_tokens=ended.output_tokens,
            ttft_seconds=ended.ttft_seconds,
            tpot_seconds=ended.tpot_seconds,
            targets=verdict,
        )

    def _send_aborts(self, now: float) -> None:
        for message in self._aborts.due(now):
            self._post(AbortRequest.SUBJECT, message)

    def _post(self, subject: str, message: object) -> None:
        try:
            self._bus.post(subject, message, traced=True)
        except BusError as error:
            log.warning("not_sent", subject=subject, error=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None], context: contextvars.Context) -> None:
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("gateway_task_failed", exc_info=task.exception())
