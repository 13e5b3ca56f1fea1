"""Clients that keep a number of streams open, and hold every token of them against what it has to be."""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from cli.chaos.answers import Answer, difference
from cli.chaos.calls import Call
from cli.chaos.outages import Stage, Trouble
from cli.chaos.tally import Story

SILENCE_SECONDS = 60.0  # without a sign of life an answer is stuck, whatever has happened
ANSWER_SECONDS = 600.0  # for one call to be answered in full, however often its client has to come again
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
Gateways = Iterator[tuple[str, str]]  # name and URL of each, over and over
COME_AGAIN = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class RefusedForNow(Exception):
    """In due form."""


class WrongAnswer(Exception):
    """Nothing that a client should ever get."""


@dataclass(slots=True, eq=False)
class Reading:
    call: Call
    story: Story
    gateways: Gateways  # whom it asks in turn
    answer: Answer = field(default_factory=Answer)
    stage: Stage = "unanswered"
    events: int = 0  # of this try
    task: asyncio.Task[None] | None = None


class Load:
    """`gateways`: name and URL of each."""

    def __init__(self, gateways: Mapping[str, str], calls: Sequence[Call], streams: int) -> None:
        self._gateways, self._calls, self.streams = itertools.cycle(gateways.items()), calls, streams
        self._expected: Mapping[int, Answer] = {}
        self._numbers = itertools.count()
        self._open: list[Reading] = []
        self._began_at = time.monotonic()
        self.stories: list[Story] = []

    @property
    def now(self) -> float:
        return time.monotonic() - self._began_at

    async def learn(self, at_once: int) -> list[str]:
        """Answer every call once, undisturbed: what it has to be from now on. What went wrong, if anything did."""
        numbers = iter(range(len(self._calls)))
        answers: dict[int, Answer] = {}
        async with self._client() as client:

            async def learn_some() -> None:
                for number in numbers:
                    reading = Reading(self._calls[number], Story(self.now), self._gateways)
                    await self._answered(client, reading)
                    answers[number] = reading.answer
                    self.stories.append(reading.story)

            await asyncio.gather(*(learn_some() for _ in range(at_once)))
        self._expected = answers
        wrong = [story.wrong for story in self.stories if story.wrong]
        wrong += [one.told() for story in self.stories for one in story.troubles]
        self.stories.clear()
        return wrong

    async def run(self, seconds: float) -> None:
        """Keep the streams open for so long, then let the last ones end."""
        self._began_at = time.monotonic()
        await self._keep_open(self.streams, self._gateways, seconds)

    async def more(self, count: int, seconds: float) -> None:
        """So many clients more, for so long."""
        await self._keep_open(count, self._gateways, self.now + seconds)

    async def through(self, gateway: str, url: str, count: int) -> None:
        """So many calls beside the others, to one gateway and by another way."""
        await self._keep_open(count, itertools.repeat((gateway, url)), self.now)

    def leave(self, count: int, pick: int) -> int:
        """So many clients hang up in the middle; how many there were."""
        chosen = [self._open[(pick + step) % len(self._open)] for step in range(min(count, len(self._open)))]
        for reading in chosen:
            reading.story.left = True
            assert reading.task is not None
            reading.task.cancel()
        return len(chosen)

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.streams)
        return httpx.AsyncClient(timeout=SILENCE_SECONDS, limits=limits, trust_env=False)

    async def _keep_open(self, count: int, gateways: Gateways, until: float) -> None:
        async with self._client() as client:
            await asyncio.gather(*(self._ask_until(until, client, gateways) for _ in range(count)))

    async def _ask_until(self, until: float, client: httpx.AsyncClient, gateways: Gateways) -> None:
        """Once, and again while it is not that late."""
        is_first = True
        while is_first or self.now < until:
            is_first = False
            number = next(self._numbers) % len(self._calls)
            reading = Reading(self._calls[number], Story(self.now), gateways)
            self.stories.append(reading.story)
            self._open.append(reading)
            reading.task = asyncio.create_task(self._answered(client, reading))
            try:
                await asyncio.wait({reading.task})  # which may have been told to leave
            finally:
                reading.task.cancel()
                self._open.remove(reading)
            if not reading.task.cancelled():
                reading.task.result()
            reading.story.ended_at = self.now
            self._judge(reading, self._expected[number], whole=not reading.story.left)

    async def _answered(self, client: httpx.AsyncClient, reading: Reading) -> None:
        """Come again after every trouble; `story.wrong` says why it ended without an answer."""
        story, pause = reading.story, FIRST_PAUSE_SECONDS
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while (trouble := await self._try(client, reading)) is not None:
                    story.troubles.append(trouble)
                    await asyncio.sleep(pause)
                    pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        except TimeoutError:
            story.wrong = f"no answer within {ANSWER_SECONDS:g} s; {[one.what for one in story.troubles[-3:]]}"
        except WrongAnswer as error:
            story.wrong = str(error)

    async def _try(self, client: httpx.AsyncClient, reading: Reading) -> Trouble | None:
        """What a broken connection has brought was right as far as it went, or it counts as wrong."""
        self._judge(reading, self._expected_of(reading), whole=False)
        (gateway, url), asked_at = next(reading.gateways), self.now
        reading.answer, reading.stage, reading.events = Answer(), "unanswered", 0
        try:
            return await self._read(client, reading, url)
        except RefusedForNow as refusal:
            reading.stage, what = "refused", str(refusal)
        except httpx.ReadTimeout:
            raise WrongAnswer(f"stuck: nothing came for {SILENCE_SECONDS:g} s") from None
        except httpx.HTTPError as error:
            what = f"{type(error).__name__}: {error}"
        return Trouble(gateway, asked_at, self.now, reading.stage, what, reading.events)

    async def _read(self, client: httpx.AsyncClient, reading: Reading, url: str) -> None:
        async with client.stream("POST", url + reading.call.path, json=reading.call.body) as response:
            if response.status_code != httpx.codes.OK:
                said = f"{response.status_code}: {_message(await response.aread())}"
                if response.status_code not in COME_AGAIN:
                    raise WrongAnswer(said)
                if not response.headers.get("retry-after", "").isdigit():
                    raise WrongAnswer(f"no Retry-After with {said}")
                raise RefusedForNow(said)
            reading.stage = "broken"  # until it is whole
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    self._take(reading, line.removeprefix("data: "))
        raise WrongAnswer(f"ended in order without [DONE] after {reading.events} events")

    def _take(self, reading: Reading, data: str) -> None:
        event = json.loads(data)
        if "error" in event:
            raise WrongAnswer(f"after {len(reading.story.tokens_at)} events: {event['error']}")
        reading.answer.take(event)
        reading.events += 1
        reading.story.tokens_at.append(self.now)

    def _expected_of(self, reading: Reading) -> Answer | None:
        return self._expected.get(self._calls.index(reading.call))

    def _judge(self, reading: Reading, expected: Answer | None, *, whole: bool) -> None:
        story = reading.story
        if expected is None or story.wrong:
            return
        found = difference(reading.answer, expected, whole=whole)
        if found is not None:
            story.wrong, story.lost, story.repeated = found.what, found.lost, found.repeated


def _message(data: bytes) -> str:
    """Of an error in OpenAI's form; any other one is wrong."""
    try:
        error = json.loads(data)["error"]
        message, _, _, _ = (error[name] for name in ("message", "type", "param", "code"))
        return str(message)
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"an error in no form known: {data[:200]!r}") from None
