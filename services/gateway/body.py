"""Reading a request's body: bounded in size and in time."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from services.gateway.errors import body_too_large, body_too_slow, client_left, not_json
from services.gateway.openai import read_json


@dataclass(frozen=True, slots=True)
class BodyReader:
    most_bytes: int
    seconds: float

    async def json(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The JSON object in the body, or ApiError. Notes in the scope's state when its last byte `arrived_at`."""
        headers = Headers(scope=scope)
        for name, allowed in (("content-type", ("", "application/json")), ("content-encoding", ("", "identity"))):
            value = headers.get(name, "")
            if value.partition(";")[0].strip().lower() not in allowed:
                raise not_json(name, value)
        announced = headers.get("content-length", "0")
        if not announced.isdigit() or int(announced[:20]) > self.most_bytes:
            raise body_too_large(self.most_bytes)
        try:
            async with asyncio.timeout(self.seconds):
                data = await self._bytes(receive)
        except TimeoutError:
            raise body_too_slow(self.seconds) from None
        scope["state"]["arrived_at"] = time.monotonic()
        return read_json(data)

    async def _bytes(self, receive: Receive) -> bytes:
        data = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise client_left()
            data += message.get("body", b"")
            if len(data) > self.most_bytes:
                raise body_too_large(self.most_bytes)
            if not message.get("more_body", False):
                return bytes(data)
