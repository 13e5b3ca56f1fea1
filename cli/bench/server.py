"""What the server at a URL serves and takes: found out with a few requests of one token each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cli.bench.events import CompletionEvents
from cli.bench.prompts import Prompts, TextPrompts, TokenPrompts
from cli.problems import Problem

PROBE_SECONDS = 120.0
PROBE_TOKENS = 4
VOCABULARIES = (30_000, 8_000, 1_000, 256)  # tried in turn: ids below must be known
LENGTH_FIELDS = ("ignore_eos", "min_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    url: str
    model: str
    api_key: str
    most_tokens: int | None  # prompt and answer together, if it says
    prompts: Prompts
    fields: tuple[str, ...]  # of LENGTH_FIELDS those that it takes

    @property
    def headers(self) -> dict[str, str]:
        return headers_for(self.api_key)

    def body(self, number: int, prompt_tokens: int, output_tokens: int) -> bytes:
        """Of the `number`th request."""
        prompt = self.prompts.make(number, prompt_tokens)
        return _body(self.model, prompt, output_tokens, self.fields)

    def about(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "model": self.model,
            "most_tokens": self.most_tokens,
            "prompts": self.prompts.kind,
            "fields": self.fields,
        }


def headers_for(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


async def find_server(url: str, model: str, api_key: str, tokenizer: Path | None, seed: int) -> Server:
    """Problem with the remedy if nothing there can be measured. With `tokenizer` prompts are text in any case."""
    timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    try:
        async with aiohttp.ClientSession(headers=headers_for(api_key), timeout=timeout) as session:
            name, most_tokens = await _model(session, url, model)
            prompts, fields = await _what_it_takes(session, url, name, tokenizer, seed)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise Problem(
            f"no server at {url} ({reason}): start one with ./distserve up, or say where with --url"
        ) from error
    return Server(url=url, model=name, api_key=api_key, most_tokens=most_tokens, prompts=prompts, fields=fields)


async def _model(session: aiohttp.ClientSession, url: str, wanted: str) -> tuple[str, int | None]:
    """Name and longest sequence of the wanted model, or of the first one."""
    async with session.get(f"{url}/v1/models") as response:
        text = await response.text()
        if response.status == 401:
            raise Problem(f"{url} wants an API key: give it with --api-key or DISTSERVE_API_KEY")
        if response.status != 200 and not wanted:
            raise Problem(f"{url}/v1/models answered {response.status}: say what to measure with --model")
    try:
        rows = json.loads(text)["data"]
        row = next((row for row in rows if row["id"] == wanted), None) if wanted else rows[0]
        return (wanted, None) if row is None else (row["id"], row.get("max_model_len"))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if wanted:
            return wanted, None
        raise Problem(f"{url}/v1/models lists no model: is it ready? --model says what to measure") from error


async def _what_it_takes(
    session: aiohttp.ClientSession, url: str, model: str, tokenizer: Path | None, seed: int
) -> tuple[Prompts, tuple[str, ...]]:
    choices: list[Prompts] = []
    if tokenizer is None:
        choices += [TokenPrompts(end, seed) for end in VOCABULARIES]
    else:
        choices.append(TextPrompts.load(tokenizer, seed))
    refusal = ""
    for prompts in choices:
        prompt = prompts.make(0, PROBE_TOKENS)
        for fields in (LENGTH_FIELDS, LENGTH_FIELDS[:1], ()):
            refusal = await _refusal(session, url, _body(model, prompt, 1, fields))
            if not refusal:
                return prompts, fields
    if tokenizer is None:
        refusal += "; if it takes no token ids: --tokenizer FOLDER, and prompts are text"
    raise Problem(f"{url}/v1/completions refuses what would be measured: {refusal}")


async def _refusal(session: aiohttp.ClientSession, url: str, body: bytes) -> str:
    """Why a request is not answered by a stream with a usage; nothing if it is."""
    async with session.post(f"{url}/v1/completions", data=body, headers={"content-type": "application/json"}) as answer:
        if answer.status != 200:
            return f"{answer.status} {(await answer.text())[:200]}"
        events = CompletionEvents()
        pieces = events.feed(await answer.read())
    if events.error:
        return events.error
    if not pieces or not events.done:
        return "its answer is no stream of text_completion events"
    if events.usage is None:
        return "its stream has no usage, though stream_options.include_usage was asked for"
    return ""


def _body(model: str, prompt: list[int] | str, output_tokens: int, fields: tuple[str, ...]) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    wanted = {"ignore_eos": True, "min_tokens": output_tokens}
    return json.dumps(body | {name: wanted[name] for name in fields}).encode()
