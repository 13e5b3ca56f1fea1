"""Events, effects and snapshots as JSON, and back. Written for the journal: what it reads, it has written itself."""

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NewType, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
_Read = Callable[[Any], Any]


def to_json(value: object) -> str:
    """Dataclasses become objects with their fields, tuples become arrays."""
    return json.dumps(value, default=_fields_of, separators=(",", ":"))


def tagged(value: object) -> tuple[str, object]:
    """For a value of which the reader does not know the class."""
    return type(value).__name__, value


def from_tagged(pair: list[Any], union: Any) -> Any:
    """The value of one of the classes of `union`. KeyError if it is of none of them."""
    name, plain = pair
    return read_as(_by_name(union)[name], plain)


def read_as(cls: type[T], plain: object) -> T:
    return _reader(cls)(plain)


def _fields_of(value: Any) -> dict[str, object]:
    return {name: getattr(value, name) for name in _field_names(type(value))}


@cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def _by_name(union: Any) -> dict[str, type]:
    return {cls.__name__: cls for cls in get_args(union)}


@cache
def _reader(annotation: Any) -> _Read:
    if isinstance(annotation, NewType):
        return _reader(annotation.__supertype__)
    if dataclasses.is_dataclass(annotation):
        return _dataclass_reader(annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        (inner,) = (_reader(arg) for arg in args if arg is not type(None))
        return lambda plain: None if plain is None else inner(plain)
    if origin is tuple and args[-1] is Ellipsis:
        item = _reader(args[0])
        return lambda plain: tuple([item(one) for one in plain])
    if origin is tuple:
        items = [_reader(arg) for arg in args]
        return lambda plain: tuple([read(one) for read, one in zip(items, plain, strict=True)])
    assert annotation in (str, int, float, bool) or origin in (dict, Literal), f"{annotation} is not for the journal"
    return lambda plain: plain


def _dataclass_reader(cls: Any) -> _Read:
    hints = get_type_hints(cls)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(cls)}
    return lambda plain: cls(**{name: readers[name](value) for name, value in plain.items()})
