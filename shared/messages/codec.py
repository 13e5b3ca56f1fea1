"""Messages as msgpack: [class name, [field values in order]], nested dataclasses as arrays.

Decoding checks every value against its annotation, so a malformed or forged message ends here as MalformedMessage.
A class may gain fields at its end if they have defaults: older peers drop what they do not know, newer ones fill in.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NewType, TypeVar, cast, get_args, get_origin, get_type_hints

import msgpack

M = TypeVar("M")
Convert = Callable[[Any], Any]


class MalformedMessage(ValueError):
    """Bytes that are not a message of an expected class."""


def encode(message: object) -> bytes:
    cls = type(message)
    return cast("bytes", msgpack.packb((cls.__name__, _packer(cls)(message))))


def decode(data: bytes, *classes: type[M]) -> M:
    """The message in `data`, which must be of one of `classes`; else MalformedMessage."""
    try:
        name, values = msgpack.unpackb(data, use_list=False, strict_map_key=False)
    except Exception as error:  # msgpack raises many kinds
        raise MalformedMessage(f"not a msgpack message: {error}") from None
    for cls in classes:
        if cls.__name__ == name:
            return _unpacker(cls)(values)
    raise MalformedMessage(f"got {name!r}, expected {' or '.join(c.__name__ for c in classes)}")


@cache
def _packer(cls: Any) -> Convert:
    """Turns a value of annotation `cls` into what msgpack can write."""
    if isinstance(cls, NewType):
        return _packer(cls.__supertype__)
    if dataclasses.is_dataclass(cls):
        hints = get_type_hints(cls)
        fields = [(f.name, _packer(hints[f.name])) for f in dataclasses.fields(cls)]
        return lambda value: [pack(getattr(value, name)) for name, pack in fields]
    if get_origin(cls) in (types.UnionType, typing.Union):
        (inner,) = (_packer(arg) for arg in get_args(cls) if arg is not type(None))
        return lambda value: None if value is None else inner(value)
    if get_origin(cls) is tuple and _holds_dataclass(cls):
        inner = _packer(get_args(cls)[0])
        return lambda value: [inner(item) for item in value]
    return lambda value: value


def _holds_dataclass(cls: Any) -> bool:
    return dataclasses.is_dataclass(cls) or any(_holds_dataclass(arg) for arg in get_args(cls))


@cache
def _unpacker(cls: Any) -> Convert:
    """Turns what msgpack read into a value of annotation `cls`, or raises MalformedMessage."""
    if isinstance(cls, NewType):
        return _unpacker(cls.__supertype__)
    if dataclasses.is_dataclass(cls):
        return _dataclass_unpacker(cls)
    origin, args = get_origin(cls), get_args(cls)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (_unpacker(arg) for arg in args if arg is not type(None))
        return lambda value: None if value is None else inner(value)
    if origin is tuple and args[-1] is Ellipsis:
        return _sequence_unpacker(args[0])
    if origin is tuple:
        return _fixed_tuple_unpacker(args)
    if origin is Literal:
        return _checker(lambda value: value in args, f"one of {args}")
    if cls is float:
        return lambda value: float(_checker(lambda v: type(v) in (int, float), "a number")(value))
    return _checker(lambda value: type(value) is cls, cls.__name__)


def _checker(accepts: Callable[[Any], bool], wanted: str) -> Convert:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise MalformedMessage(f"expected {wanted}, got {value!r:.80}")
        return value

    return check


def _sequence_unpacker(item: Any) -> Convert:
    if item is int:  # token ids: by far the longest fields
        return _checker(lambda v: type(v) is tuple and all(type(i) is int for i in v), "integers")
    inner = _unpacker(item)

    def unpack(value: Any) -> tuple:
        if type(value) is not tuple:
            raise MalformedMessage(f"expected a sequence, got {value!r:.80}")
        return tuple([inner(v) for v in value])

    return unpack


def _fixed_tuple_unpacker(args: tuple[Any, ...]) -> Convert:
    inner = [_unpacker(arg) for arg in args]

    def unpack(value: Any) -> tuple:
        if type(value) is not tuple or len(value) != len(inner):
            raise MalformedMessage(f"expected {len(inner)} values, got {value!r:.80}")
        return tuple([convert(v) for convert, v in zip(inner, value, strict=True)])

    return unpack


def _dataclass_unpacker(cls: Any) -> Convert:
    hints = get_type_hints(cls)
    fields = [(f.name, _unpacker(hints[f.name])) for f in dataclasses.fields(cls)]

    def unpack(values: Any) -> Any:
        if type(values) is not tuple:
            raise MalformedMessage(f"{cls.__name__}: expected its fields, got {values!r:.80}")
        try:
            return cls(**{name: convert(v) for (name, convert), v in zip(fields, values, strict=False)})
        except (MalformedMessage, TypeError) as error:
            raise MalformedMessage(f"{cls.__name__}: {error}") from None

    return unpack
