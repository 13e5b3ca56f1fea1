"""A client of the OpenAI-compatible endpoint: streamed chat completions, and how long they took."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import httpx

from cli.problems import Problem

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 120.0  # the longest wait for the next piece: a busy system queues

Message = dict[str, str]  # role, content


@dataclass(frozen=True, slots=True)
class Timing:
    """As the client saw it. Without usage in the stream, `tokens` counts the pieces."""

    tokens: int
    ttft_seconds: float
    tpot_seconds: float | None  # None below two tokens

    @classmethod
    def of(cls, *, tokens: int, sent_at: float, first_at: float, last_at: float) -> "Timing":
        tpot = (last_at - first_at) / (tokens - 1) if tokens > 1 else None
        return cls(tokens, first_at - sent_at, tpot)

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens", f"TTFT {self.ttft_seconds * 1000:.0f} ms"]
        if self.tpot_seconds is not None:
            parts.append(f"TPOT {self.tpot_seconds * 1000:.1f} ms")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Chunk:
    text: str = ""
    tokens: int | None = None  # of the whole answer, in the chunk that carries the usage


def parse_line(line: str) -> Chunk | None:
    """One line of the event stream; None for what carries nothing: blank lines, comments, the end mark."""
    if not line.startswith("data:") or line.removeprefix("data:").strip() == "[DONE]":
        return None
    try:
        event = json.loads(line.removeprefix("data:"))
    except ValueError as error:
        raise Problem(f"the server sent something that is not JSON: {line:.200}") from error
    if "error" in event:
        raise Problem(f"the answer broke off: {event['error'].get('message', event['error'])}")
    text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))
    usage = event.get("usage") or {}
    return Chunk(text, usage.get("completion_tokens"))


class ChatClient:
    """One server and one of its models. Every failure is a Problem."""

    def __init__(self, url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self.timing: Timing | None = None  # of the last answer that said something, also of one that was stopped

    def close(self) -> None:
        self._http.close()

    def first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
            self._check(response)
            models = response.json()["data"]
            return models[0]["id"]
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Problem(f"{self._url}/v1/models lists no model: is this an OpenAI-compatible server?") from error

    def stream(self, messages: list[Message], *, model: str, max_tokens: int, temperature: float) -> Generator[str]:
        """The pieces of the answer as they come. Closing the iterator tells the server to stop."""
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.timing = None
        sent_at = time.monotonic()
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                self._check(response)
                yield from self._pieces(response, sent_at)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _pieces(self, response: httpx.Response, sent_at: float) -> Generator[str]:
        first_at, last_at, pieces = 0.0, 0.0, 0
        for line in response.iter_lines():
            chunk = parse_line(line)
            if chunk is None:
                continue
            if chunk.text:
                last_at = time.monotonic()
                first_at = first_at or last_at
                pieces += 1
                self.timing = Timing.of(tokens=pieces, sent_at=sent_at, first_at=first_at, last_at=last_at)
                yield chunk.text
            if chunk.tokens is not None and self.timing is not None:
                self.timing = Timing.of(tokens=chunk.tokens, sent_at=sent_at, first_at=first_at, last_at=last_at)

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        response.read()
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise Problem(f"{self._url} wants an API key: give it with --api-key or DISTSERVE_API_KEY")
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        raise Problem(f"{self._url} answered {response.status_code}: {message}")

    def _unreachable(self, error: httpx.HTTPError) -> Problem:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol):
            return Problem(
                f"no server at {self._url} ({error}): start one with ./distserve up, or say where with --url"
            )
        return Problem(f"the connection to {self._url} broke: {error or type(error).__name__}")
