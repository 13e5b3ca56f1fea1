"""Clients that keep a number of streams open, and hold every token of them against what it has to be."""

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from cli.chaos.answers import Answer, difference
from cli.chaos.calls import Call
from cli.chaos.tally import Story

SILENCE_SECONDS = 60.0  # without a sign of life an answer is stuck, whatever has happened
ANSWER_SECONDS = 600.0  # for one call to be answered in full, however often its client has to come again
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
COME_AGAIN = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class ComeAgain(Exception):
    """Refused for now, in due form, or the connection broke."""


class WrongAnswer(Exception):
    """Nothing that a client should ever get."""


@dataclass(slots=True, eq=False)
class Reading:
    call: Call
    story: Story
    answer: Answer = field(default_factory=Answer)
    task: asyncio.Task[None] | None = None


class Load:
    def __init__(self, urls: Sequence[str], calls: Sequence[Call], streams: int) -> None:
        self._urls, self._calls, self._streams = itertools.cycle(urls), calls, streams
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
                    reading = Reading(self._calls[number], Story(self.now))
                    await self._answered(client, reading)
                    answers[number] = reading.answer
                    self.stories.append(reading.story)

            await asyncio.gather(*(learn_some() for _ in range(at_once)))
        self._expected = answers
        wrong = [story.wrong for story in self.stories if story.wrong]
        self.stories.clear()
        return wrong

    async def run(self, seconds: float) -> None:
        """Keep the streams open for so long, then let the last ones end."""
        self._began_at = time.monotonic()
        async with self._client() as client:
            await asyncio.gather(*(self._ask_again_and_again(client, seconds) for _ in range(self._streams)))

    def leave(self, count: int, pick: int) -> int:
        """So many clients hang up in the middle; how many there were."""
        chosen = [self._open[(pick + step) % len(self._open)] for step in range(min(count, len(self._open)))]
        for reading in chosen:
            reading.story.left = True
            assert reading.task is not None
            reading.task.cancel()
        return len(chosen)

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=4 * self._streams, max_keepalive_connections=self._streams)
        return httpx.AsyncClient(timeout=SILENCE_SECONDS, limits=limits, trust_env=False)

    async def _ask_again_and_again(self, client: httpx.AsyncClient, seconds: float) -> None:
        while self.now < seconds:
            number = next(self._numbers) % len(self._calls)
            reading = Reading(self._calls[number], Story(self.now))
            self.stories.append(reading.story)
            self._open.append(reading)
            reading.task = asyncio.create_task(self._answered(client, reading))
            with suppress(asyncio.CancelledError):
                await asyncio.shield(reading.task)
            self._open.remove(reading)
            reading.story.ended_at = self.now
            self._judge(reading, self._expected[number], whole=not reading.story.left)

    async def _answered(self, client: httpx.AsyncClient, reading: Reading) -> None:
        """Come again as long as there is a reason to; `story.wrong` says why it ended without an answer."""
        story, pause = reading.story, FIRST_PAUSE_SECONDS
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    try:
                        return await self._read(client, reading)
                    except ComeAgain as trouble:
                        story.troubles.append((self.now, str(trouble)))
                    except httpx.ReadTimeout:
                        raise WrongAnswer(f"stuck: nothing came for {SILENCE_SECONDS:g} s") from None
                    except httpx.HTTPError as error:
                        story.troubles.append((self.now, f"broken: {error or type(error).__name__}"))
                    await asyncio.sleep(pause)
                    pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        except TimeoutError:
            story.wrong = f"no answer within {ANSWER_SECONDS:g} s; {story.troubles[-3:]}"
        except WrongAnswer as error:
            story.wrong = str(error)

    async def _read(self, client: httpx.AsyncClient, reading: Reading) -> None:
        """What a broken connection has brought was right as far as it went, or it counts as wrong."""
        self._judge(reading, self._expected_of(reading), whole=False)
        reading.answer = Answer()
        url = next(self._urls) + reading.call.path
        async with client.stream("POST", url, json=reading.call.body) as response:
            if response.status_code in COME_AGAIN:
                raise ComeAgain(f"{response.status_code}: {_message(await response.aread())}")
            if response.status_code != httpx.codes.OK:
                raise WrongAnswer(f"{response.status_code}: {_message(await response.aread())}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    self._take(reading, line.removeprefix("data: "))
        raise ComeAgain("the answer broke off")

    def _take(self, reading: Reading, data: str) -> None:
        event = json.loads(data)
        if "error" in event:
            raise WrongAnswer(f"after {len(reading.story.tokens_at)} events: {event['error']}")
        reading.answer.take(event)
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
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        raise WrongAnswer(f"an error in no form known: {data[:200]!r}") from None
