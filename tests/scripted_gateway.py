"""A gateway without HTTP: submits token ids, collects tokens, submits again when interrupted. For tests."""

import asyncio
import itertools
from dataclasses import dataclass, field

from msgspec.structs import replace

from shared.bus.heart import Heart
from shared.bus.interface import Bus, BusTimeout, NoResponder
from shared.messages.instances import Beat
from shared.messages.requests import AbortRequest, Accepted, Refused, RequestEnded, SubmitRequest
from shared.messages.sealed import new_seal_key, unseal
from shared.messages.tokens import Finish, RequestInterrupted, Sealed, TokenBatch, TokenLogprobs, TokenRow
from shared.specs.ids import InstanceId, RequestId
from shared.specs.sampling import Sampling

SUBMIT_SECONDS = 10.0
ANSWER_SECONDS = 2.0
PAUSE_SECONDS = 0.1


class RequestRefused(Exception):
    pass


@dataclass
class Answer:
    request: RequestId
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    attempt: int = 0
    given_up: bool = False
    interruptions: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def has(self, count: int) -> None:
        """Wait until it has `count` tokens or its end."""
        async with asyncio.timeout(20):
            while len(self.tokens) < count and self.finish is None:
                self.changed.clear()
                await self.changed.wait()


class ScriptedGateway:
    def __init__(self, bus: Bus, name: str = "gateway-5c217ed0") -> None:
        self.instance = InstanceId(name)
        self.seal_key = new_seal_key()
        self._bus = bus
        self._answers: dict[RequestId, Answer] = {}
        self._works: dict[RequestId, SubmitRequest] = {}
        self._names = (RequestId(f"{name}-{number}") for number in itertools.count())
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        subject = Sealed.SUBJECT.format(gateway=self.instance)
        await self._bus.subscribe(subject, self._told, Sealed, RequestInterrupted)
        heart = Heart(self._bus, lambda number: Beat(instance=self.instance, role="gateway", number=number))
        self._own(heart.run())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, prompt: list[int], sampling: Sampling, model: str) -> Answer:
        request = next(self._names)
        work = SubmitRequest(
            request=request,
            attempt=0,
            gateway=self.instance,
            model=model,
            prompt=tuple(prompt),
            sampling=sampling,
            seal_key=self.seal_key,
        )
        self._answers[request], self._works[request] = Answer(request), work
        await self._send(work)
        return self._answers[request]

    async def generate(self, prompt: list[int], sampling: Sampling, model: str) -> Answer:
        answer = await self.submit(prompt, sampling, model)
        await answer.has(sampling.max_tokens)
        return answer

    async def abort(self, answer: Answer) -> None:
        answer.given_up = True
        await self._bus.publish(AbortRequest.SUBJECT, AbortRequest(request=answer.request, attempt=answer.attempt))

    async def _send(self, work: SubmitRequest) -> None:
        """Again and again, as a gateway does: a scheduler that is not sure to lead says nothing."""
        async with asyncio.timeout(SUBMIT_SECONDS):
            while True:
                try:
                    reply = await self._bus.request(
                        SubmitRequest.SUBJECT, work, Accepted, Refused, timeout_seconds=ANSWER_SECONDS
                    )
                except (BusTimeout, NoResponder):
                    await asyncio.sleep(PAUSE_SECONDS)
                    continue
                if isinstance(reply, Refused):
                    raise RequestRefused(f"{reply.reason}: {reply.message}")
                return

    async def _told(self, message: Sealed | RequestInterrupted) -> None:
        if isinstance(message, Sealed):
            for row in unseal(message, self.seal_key, TokenBatch).rows:
                await self._row(row)
            return
        answer, work = self._answers[message.request], self._works[message.request]
        if answer.given_up:
            answer.finish = "aborted"
            answer.changed.set()
        elif message.attempt == answer.attempt and answer.finish is None:
            answer.attempt += 1
            answer.interruptions.append(message.reason)
            self._own(self._send(replace(work, attempt=answer.attempt, generated=tuple(answer.tokens))))

    async def _row(self, row: TokenRow) -> None:
        answer = self._answers[row.request]
        if row.attempt != answer.attempt:
            return
        assert row.index == len(answer.tokens), f"{row} after {len(answer.tokens)} tokens"
        answer.tokens.extend(row.tokens)
        answer.logprobs.extend(row.logprobs)
        answer.finish = row.finish
        answer.changed.set()
        if row.finish is not None:
            ended = RequestEnded(
                request=row.request,
                attempt=row.attempt,
                gateway=self.instance,
                outcome=row.finish,
                prompt_tokens=len(self._works[row.request].prompt),
                output_tokens=len(answer.tokens),
                ttft_seconds=None,
                tpot_seconds=None,
            )
            await self._bus.publish(RequestEnded.SUBJECT, ended)

    def _own(self, coroutine) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
