"""Events, effects and snapshots as JSON, and back. Written for the journal: what it reads, it has written itself."""

from functools import cache
from typing import Any, TypeVar, get_args

import msgspec

T = TypeVar("T")
_ENCODER = msgspec.json.Encoder()


def to_json(value: object) -> str:
    """Dataclasses become objects with their fields, records and tuples become arrays."""
    return _ENCODER.encode(value).decode()


def tagged(value: object) -> tuple[str, object]:
    """For a value of which the reader does not know the class."""
    return type(value).__name__, value


def from_tagged(pair: list[Any], union: Any) -> Any:
    """The value of one of the classes of `union`. KeyError if it is of none of them."""
    name, plain = pair
    return msgspec.convert(plain, _by_name(union)[name])


def read_as(cls: type[T], plain: object) -> T:
    return msgspec.convert(plain, cls)


@cache
def _by_name(union: Any) -> dict[str, type]:
    return {cls.__name__: cls for cls in get_args(union)}
