"""Messages as msgpack: [class name, [field values in order]], nested records as arrays.

Decoding checks every value against its annotation, so a malformed or forged message ends here as MalformedMessage.
A class may gain fields at its end if they have defaults: older peers drop what they do not know, newer ones fill in.
"""

from functools import cache
from typing import TypeVar

import msgspec

M = TypeVar("M")

_ENCODER = msgspec.msgpack.Encoder()
_ENVELOPE = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class MalformedMessage(ValueError):
    """Bytes that are not a message of an expected class."""


def encode(message: object) -> bytes:
    return _head(type(message)) + _ENCODER.encode(message)


def decode(data: bytes, *classes: type[M]) -> M:
    """The message in `data`, which must be of one of `classes`; else MalformedMessage."""
    try:
        name, fields = _ENVELOPE.decode(data)
    except _MALFORMED as error:
        raise MalformedMessage(f"not a message: {error}") from None
    for cls in classes:
        if cls.__name__ == name:
            try:
                return _decoder(cls).decode(fields)
            except _MALFORMED as error:
                raise MalformedMessage(f"{name}: {error}") from None
    raise MalformedMessage(f"got {name!r}, expected {' or '.join(c.__name__ for c in classes)}")


@cache
def _head(cls: type) -> bytes:
    """What comes before the fields: an array of two, the first of which is the name."""
    return b"\x92" + _ENCODER.encode(cls.__name__)


@cache
def _decoder(cls: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(cls)
