"""A scheduler, a prefill and a decode instance that speak the real messages, and answer what a test tells them to."""

import asyncio
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from services.gateway.tokenizer import Tokenizer
from shared.bus.heart import Heart
from shared.bus.interface import Bus
from shared.messages.instances import Beat, Capacity, Link
from shared.messages.requests import AbortRequest, Accepted, Refused, RequestEnded, SubmitRequest
from shared.messages.tokens import TokenLogprobs
from shared.policy.finish import finish_of
from shared.specs.ids import InstanceId, RequestId
from shared.worker.teller import Teller

SCHEDULER, PREFILL, DECODE = (InstanceId(name) for name in ("scheduler-1", "prefill-1", "decode-1"))
INSTANCES = (SCHEDULER, PREFILL, DECODE)
MODEL = "tiny"


class ScriptedBackend:
    """Answers every request with the tokens of `text` and the end token, one every `token_seconds`."""

    def __init__(self, buses: Mapping[InstanceId, Bus], tokenizer: Tokenizer) -> None:
        """`buses`: one for each of INSTANCES; closed with it."""
        self._tokenizer = tokenizer
        self._buses = buses
        self._teller = Teller(self._buses[DECODE], DECODE)
        self._tasks: dict[RequestId, asyncio.Task[None]] = {}
        self._beats: list[asyncio.Task[None]] = []
        self.text = "the quick brown fox"
        self.token_seconds = 0.0
        self.refuse: Callable[[SubmitRequest], Refused | None] = lambda work: None
        self.queueing = False  # accept, but start nothing
        self.failing_with = ""  # accept, then give it back for this reason
        self.submitted: list[SubmitRequest] = []
        self.aborted: list[AbortRequest] = []
        self.ended: list[RequestEnded] = []

    async def start(self) -> None:
        scheduler, decode = self._buses[SCHEDULER], self._buses[DECODE]
        await self._teller.listen()
        await Teller(self._buses[PREFILL], PREFILL).listen()
        await scheduler.subscribe(SubmitRequest.SUBJECT, self._submit, SubmitRequest)
        await scheduler.subscribe(RequestEnded.SUBJECT, self._end, RequestEnded)
        await decode.subscribe(AbortRequest.SUBJECT, self._abort, AbortRequest)
        capacity = Capacity(max_model_tokens=512)
        beats = (
            Beat(instance=SCHEDULER, role="scheduler", number=0, term=1),
            Beat(instance=PREFILL, role="prefill", number=0, model=MODEL, capacity=capacity),
            Beat(
                instance=DECODE,
                role="decode",
                number=0,
                model=MODEL,
                capacity=capacity,
                links=(Link(peer=PREFILL, ok=True),),
            ),
        )
        for beat in beats:
            heart = Heart(self._buses[beat.instance], lambda number, beat=beat: replace(beat, number=number))
            self._beats.append(asyncio.create_task(heart.run()))

    async def close(self) -> None:
        tasks = [*self._beats, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for bus in self._buses.values():
            await bus.close()

    async def interrupt(self) -> None:
        """Lose every running request, as when its instance dies."""
        for task in list(self._tasks.values()):
            task.cancel()
        for work in {work.request: work for work in self.submitted}.values():
            if work.request in self._tasks:
                await self._teller.interrupt(work, "its instance is lost")
        self._tasks.clear()

    async def _submit(self, work: SubmitRequest) -> Accepted | Refused:
        self.submitted.append(work)
        refused = self.refuse(work)
        if refused is not None:
            return refused
        if self.failing_with:
            await self._teller.interrupt(work, self.failing_with)
        elif not self.queueing:
            self._tasks[work.request] = asyncio.create_task(self._generate(work))
        return Accepted(request=work.request, attempt=work.attempt)

    async def _generate(self, work: SubmitRequest) -> None:
        answer = [*self._tokenizer.encode_now(self.text, special_tokens=False), 0]
        self._teller.begin(work)
        for position in range(len(work.generated), work.sampling.max_tokens):
            await asyncio.sleep(self.token_seconds)
            token = answer[position % len(answer)]
            finish = finish_of(work.sampling, token, position + 1)
            self._teller.tell(work.request, token, _logprobs(token, work.sampling.logprobs), finish)
            await self._teller.flush()
            if finish is not None:
                break
        self._tasks.pop(work.request, None)

    async def _abort(self, message: AbortRequest) -> None:
        self.aborted.append(message)
        task = self._tasks.pop(message.request, None)
        if task is not None:
            task.cancel()
            self._teller.end(message.request, "aborted")
            await self._teller.flush()

    async def _end(self, message: RequestEnded) -> None:
        self.ended.append(message)

    @property
    def running(self) -> int:
        return len(self._tasks)


def _logprobs(token: int, alternatives: int | None) -> TokenLogprobs | None:
    if alternatives is None:
        return None
    top = tuple((token + rank, -0.5 - rank) for rank in range(alternatives))
    return TokenLogprobs(token=-0.5, top=top)
