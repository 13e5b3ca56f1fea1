"""The events of a streamed completion, read as the bytes come. Most of them are only counted: that is cheap."""

import json
from typing import Any

MOST_LINE_BYTES = 1 << 20
PIECE = b'"text"'  # within a JSON string its quotes would be escaped
USAGE = b'"usage"'


class CompletionEvents:
    """Feed it what arrives. Afterwards: the usage as the server counts it, and why it broke off, if it did."""

    def __init__(self) -> None:
        self._rest = b""
        self.usage: dict[str, int] | None = None
        self.error = ""
        self.done = False  # the end mark was there

    def feed(self, data: bytes) -> int:
        """How many pieces of the answer are complete now."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > MOST_LINE_BYTES:
            self.error, self._rest = "a line of more than 1 MiB is no event", b""
        pieces = 0
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            is_piece = PIECE in line
            pieces += is_piece
            if not is_piece or _has_usage(line):
                self._look_into(line[5:].strip())
        return pieces

    def _look_into(self, event: bytes) -> None:
        if event == b"[DONE]":
            self.done = True
            return
        try:
            content: dict[str, Any] = json.loads(event)
            if content.get("error"):
                error = content["error"]
                self.error = str(error.get("message", error) if isinstance(error, dict) else error)[:200]
            usage = content.get("usage")
        except (ValueError, AttributeError):
            self.error = f"no JSON object: {event[:100]!r}"
            return
        if isinstance(usage, dict):
            self.usage = usage


def _has_usage(line: bytes) -> bool:
    found = line.rfind(USAGE)
    return found >= 0 and not line[found + len(USAGE) :].lstrip(b" :").startswith(b"null")
