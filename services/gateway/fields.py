"""Kinds of JSON values: each reads one, or says what is wrong with it, and describes itself as a schema."""

from dataclasses import dataclass
from typing import Any, Protocol

from services.gateway.errors import bad_value


class Field(Protocol):
    def read(self, value: Any, param: str) -> Any:
        """The value in the form used from here on; ApiError naming `param` if it is not of this kind."""
        ...

    def schema(self) -> dict[str, Any]:
        """The same rule as JSON schema."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    least: int
    most: int

    def read(self, value: Any, param: str) -> int:
        if isinstance(value, float) and value.is_integer():  # JSON schema counts 1.0 as an integer
            value = int(value)
        if type(value) is not int:
            raise bad_value(param, f"'{param}' must be an integer, got {shown(value)}", "invalid_type")
        if not self.least <= value <= self.most:
            raise bad_value(param, f"'{param}' must be between {self.least} and {self.most}, got {shown(value)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Number:
    least: float
    most: float
    above_least: bool = False  # `least` itself is not allowed

    def read(self, value: Any, param: str) -> float:
        if type(value) not in (int, float) or value != value:
            raise bad_value(param, f"'{param}' must be a number, got {shown(value)}", "invalid_type")
        if not self.least <= value <= self.most or (self.above_least and value == self.least):
            least = f"above {self.least:g}" if self.above_least else f"at least {self.least:g}"
            raise bad_value(param, f"'{param}' must be {least} and at most {self.most:g}, got {shown(value)}")
        return float(value)

    def schema(self) -> dict[str, Any]:
        return {
            "type": "number",
            "exclusiveMinimum" if self.above_least else "minimum": self.least,
            "maximum": self.most,
        }


@dataclass(frozen=True, slots=True)
class Flag:
    def read(self, value: Any, param: str) -> bool:
        if not isinstance(value, bool):
            raise bad_value(param, f"'{param}' must be true or false, got {shown(value)}", "invalid_type")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text:
    least_chars: int = 0
    most_chars: int = 1 << 30  # the limit on the body is the real one

    def read(self, value: Any, param: str) -> str:
        if not isinstance(value, str):
            raise bad_value(param, f"'{param}' must be a string, got {shown(value)}", "invalid_type")
        if not self.least_chars <= len(value) <= self.most_chars:
            wanted = f"{self.least_chars} to {self.most_chars} characters"
            raise bad_value(param, f"'{param}' must have {wanted}, got {len(value)}")
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can write half of a surrogate pair
            raise bad_value(param, f"'{param}' holds a lone surrogate, which is not text") from None
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": self.least_chars, "maxLength": self.most_chars}


@dataclass(frozen=True, slots=True)
class Many:
    """A list of one kind."""

    item: Field
    least: int
    most: int

    def read(self, value: Any, param: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise bad_value(param, f"'{param}' must be a list, got {shown(value)}", "invalid_type")
        if not self.least <= len(value) <= self.most:
            raise bad_value(param, f"'{param}' must have {self.least} to {self.most} entries, got {len(value)}")
        return tuple([self.item.read(item, param) for item in value])

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.item.schema(), "minItems": self.least, "maxItems": self.most}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A list of integers of which there may be millions: looked at one by one only if something is wrong."""

    most: int  # of each

    def read(self, value: Any, param: str) -> tuple[int, ...]:
        if isinstance(value, list) and set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= self.most:
            return tuple(value)
        return self._each.read(value, param)

    def schema(self) -> dict[str, Any]:
        return self._each.schema()

    @property
    def _each(self) -> Many:
        return Many(Integer(0, self.most), 1, self.most)


@dataclass(frozen=True, slots=True)
class OneOrMany:
    """One string, or a list of them: a tuple either way."""

    item: Field
    most: int

    def read(self, value: Any, param: str) -> tuple[Any, ...]:
        if isinstance(value, str):
            return (self.item.read(value, param),)
        return Many(self.item, 0, self.most).read(value, param)

    def schema(self) -> dict[str, Any]:
        return {"oneOf": [self.item.schema(), Many(self.item, 0, self.most).schema()]}


def read_table(table: dict[str, Field], body: dict[str, Any]) -> dict[str, Any]:
    """The values of the fields that are there; null is the same as not there."""
    return {name: field.read(body[name], name) for name, field in table.items() if body.get(name) is not None}


def shown(value: Any) -> str:
    """A value as an error message may show it: short, whatever it is."""
    if value == []:
        return "an empty list"
    kinds: dict[type, str] = {dict: "an object", list: "a list", type(None): "null", str: "a string", bool: "a boolean"}
    if type(value) in kinds:
        return kinds[type(value)]
    return "a very large number" if isinstance(value, int) and value.bit_length() > 256 else str(value)
