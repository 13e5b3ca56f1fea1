"""What a client is told when something goes wrong: OpenAI's error form, with the HTTP status that belongs to it."""

import json
import math
from http import HTTPStatus
from typing import assert_never

from services.gateway.keys import KeyLimits
from shared.messages.requests import Refused


class ApiError(Exception):
    """An answer that is an error. `message` is for the client: what to change, and nothing of the inside."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = int(status)
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after_seconds <= 0:
            return []
        return [(b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_seconds)))]


def bad_value(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def not_supported(param: str) -> ApiError:
    message = f"'{param}' with this value is not supported by this server; leave it out"
    return bad_value(param, message, "unsupported_parameter")


def unknown_model(model: str) -> ApiError:
    message = f"The model '{model}' does not exist here; GET /v1/models lists what is served"
    return ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")


def context_too_long(window: int, prompt_tokens: int, max_tokens: int, param: str) -> ApiError:
    message = (
        f"This model's maximum context length is {window} tokens. However, you requested {prompt_tokens + max_tokens} "
        f"tokens ({prompt_tokens} in the {param}, {max_tokens} in the completion). Please reduce their length."
    )
    return bad_value(param, message, "context_length_exceeded")


def overloaded(message: str, retry_after_seconds: float) -> ApiError:
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        message,
        kind="rate_limit_error",
        code="queue_full",
        retry_after_seconds=max(1.0, retry_after_seconds),
    )


def too_many(limits: KeyLimits, count: int, retry_after_seconds: float) -> ApiError:
    """`count`: the requests of one call."""
    allowed = [(limits.at_once, "at once"), (limits.per_minute, "in a minute")]
    said = " and ".join(f"{limit} requests {when}" for limit, when in allowed if limit is not None)
    if count > limits.most:
        return bad_value("n", f"One API key may have {said} here; these are {count}: each choice of each prompt is one")
    return ApiError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"One API key may have {said} here",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after_seconds=retry_after_seconds,
    )


def unavailable(message: str, retry_after_seconds: float = 1.0) -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        message,
        kind="service_unavailable",
        code="service_unavailable",
        retry_after_seconds=max(1.0, retry_after_seconds),
    )


def took_too_long(seconds: float) -> ApiError:
    message = f"The answer was not complete after {seconds:g} seconds, the limit of this server"
    return ApiError(HTTPStatus.GATEWAY_TIMEOUT, message, kind="timeout_error", code="deadline_exceeded")


def client_left() -> ApiError:
    """Nobody hears it; it is for the logs, with nginx's status for this."""
    return ApiError(499, "The client closed the connection", kind="client_closed")


def wrong_key() -> ApiError:
    message = "A valid API key is needed: send the header 'Authorization: Bearer <key>'"
    return ApiError(HTTPStatus.UNAUTHORIZED, message, kind="authentication_error", code="invalid_api_key")


def body_too_large(most_bytes: int) -> ApiError:
    message = f"The body is larger than {most_bytes} bytes"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, param="body", code="body_too_large")


def body_too_slow(seconds: float) -> ApiError:
    message = f"The body did not arrive within {seconds:g} seconds"
    return ApiError(HTTPStatus.REQUEST_TIMEOUT, message, kind="timeout_error", param="body", code="body_timeout")


def not_json(header: str, value: str) -> ApiError:
    message = (
        f"The header '{header}: {value[:100]}' is not supported; send 'Content-Type: application/json', not compressed"
    )
    return ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, param=header, code="unsupported_media_type")


def http_error(status: int) -> ApiError:
    """What the router says: no such path, or not with this method."""
    phrase = HTTPStatus(status).phrase
    return ApiError(status, f"{phrase}; GET /openapi.json lists the routes", code=phrase.lower().replace(" ", "_"))


def internal_error() -> ApiError:
    message = "The server had an error while processing the request"
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error", code="internal_error")


def refusal(refused: Refused, model: str) -> ApiError:
    """The scheduler's words in HTTP's."""
    match refused.reason:
        case "queue_full" | "too_late":
            return overloaded(refused.message, refused.retry_after_seconds)
        case "too_long":
            return bad_value("max_tokens", refused.message, "context_length_exceeded")
        case "unknown_model":
            return unknown_model(model)
        case "invalid":
            return bad_value("body", refused.message)
        case "no_instance" | "draining" | "deposed":
            return unavailable(refused.message, refused.retry_after_seconds)
        case _:
            assert_never(refused.reason)
