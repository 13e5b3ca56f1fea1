"""Settings from the environment, each checked once at start. A wrong one names the variable and the remedy."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeVar

Choice = TypeVar("Choice", bound=str)


MISCONFIGURED = 78  # EX_CONFIG of sysexits.h: the exit status of a service that starting again does not help


class BadSetting(ValueError):
    """A setting that cannot be used; its text is meant for the person who set it."""


def end_misconfigured(service: str, error: Exception) -> NoReturn:
    """End this process, and say why."""
    sys.stderr.write(f"{service}: {error}\n")
    sys.exit(MISCONFIGURED)


class Environment:
    """Reads DISTSERVE_* variables. An empty variable counts as not set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, name: str, default: str) -> str:
        return self._variables.get(f"DISTSERVE_{name}", "").strip() or default

    def required(self, name: str, what: str) -> str:
        value = self.text(name, "")
        if not value:
            raise BadSetting(f"DISTSERVE_{name} is not set: it must be {what}")
        return value

    def path(self, name: str) -> Path | None:
        value = self.text(name, "")
        return Path(value) if value else None

    def integer(self, name: str, default: int, least: int = 0, most: int = 2**62) -> int:
        return int(self._number(name, default, least, most, int))

    def integers(self, name: str) -> tuple[int, ...]:
        """Separated by commas; none if it is not set."""
        text = self.text(name, "")
        if text and not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
            raise BadSetting(f"DISTSERVE_{name}={text!r}: it must be numbers separated by commas")
        return tuple(int(part) for part in text.split(",")) if text else ()

    def number(self, name: str, default: float, least: float = 0.0, most: float = float("inf")) -> float:
        return self._number(name, default, least, most, float)

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name, "1" if default else "0").lower()
        if value not in ("0", "1", "true", "false", "on", "off"):
            raise BadSetting(f"DISTSERVE_{name}={value!r}: it must be 1 or 0")
        return value in ("1", "true", "on")

    def choice(self, name: str, default: Choice, allowed: tuple[Choice, ...]) -> Choice:
        value = self.text(name, default)
        for one in allowed:
            if value == one:
                return one
        raise BadSetting(f"DISTSERVE_{name}={value!r}: it must be one of {', '.join(allowed)}")

    def _number(self, name: str, default: float, least: float, most: float, kind: type) -> float:
        text = self.text(name, str(default))
        try:
            value = kind(text)
        except ValueError:
            raise BadSetting(f"DISTSERVE_{name}={text!r} is not a number") from None
        if not least <= value <= most:
            raise BadSetting(f"DISTSERVE_{name}={text}: it must be between {least} and {most}")
        return value
