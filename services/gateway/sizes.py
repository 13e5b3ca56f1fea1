"""What a template's operators, methods and filters may make at most: an estimate, before they are let do it."""

import re
from collections.abc import Sequence
from sys import getsizeof
from typing import Any

MOST_BYTES = 256 << 20  # of all that one rendering makes; the longest chats come to some tens of MiB
MOST_INTEGER_BITS = 1 << 16
PART_BYTES = 512  # of a list or a dictionary, so that it does not take long either to look at all of them
PIECE_BYTES = 88  # a short string and its place in a list
ESCAPED = 6  # characters at most for one, as in &quot;
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))
COMPARING = frozenset(("sort", "unique", "groupby", "dictsort", "min", "max", "index", "count"))
LISTING = frozenset(("list", "sort", "unique", "slice", "batch", "reverse"))
ESCAPING = frozenset(("escape", "e", "forceescape", "tojson", "urlencode", "urlize", "xmlattr", "pprint"))
FORMATTING = frozenset(("format", "format_map"))
OTHERS = frozenset(
    ("join", "replace", "split", "rsplit", "splitlines", "indent", "expandtabs", "wordwrap", "translate", "string")
)
# What these make may be much larger than what they are given.
GROWING = COMPARING | LISTING | ESCAPING | FORMATTING | OTHERS


class TooLarge(Exception):
    """A template wants more memory than it may have."""

    def __init__(self) -> None:
        super().__init__(f"it makes values of more than {MOST_BYTES >> 20} MiB")


def bytes_of(name: str, values: Sequence[Any]) -> int:
    """About what a method or filter may make at most, beyond something as large as what it is given."""
    subject, *arguments = values
    numbers = sum([abs(value) for value in arguments if isinstance(value, int)])  # widths and counts
    if name not in GROWING:
        return numbers * 4
    texts = [value for value in values if isinstance(value, str)]
    if name in FORMATTING and isinstance(subject, str):
        return bytes_formatted(subject, arguments)
    if name in ESCAPING:
        return (ESCAPED + numbers) * size_of(subject)
    if name == "string":
        return size_of(subject)
    if name == "join":
        return sum(map(size_of, values)) + max(map(len, texts), default=0) * 4 * _count(values)
    if not isinstance(subject, str):
        return numbers * PIECE_BYTES + (size_of(subject) if name in COMPARING else 0)
    return _bytes_of_text(name, subject, texts[1:], numbers)


def _bytes_of_text(name: str, subject: str, texts: Sequence[str], numbers: int) -> int:
    if name in LISTING:
        return (len(subject) + numbers) * PIECE_BYTES
    if name == "replace" and len(texts) > 1:
        old, new = texts[:2]  # or the other way round, where they are named
        return 4 * (1 + max(subject.count(old) * len(new), subject.count(new) * len(old)))
    if name in ("split", "rsplit"):
        return (1 + sum(map(subject.count, texts or SPACES))) * PIECE_BYTES
    if name in ("splitlines", "indent"):
        lines = 1 + sum(map(subject.count, LINE_ENDS))
        return lines * (PIECE_BYTES + numbers + sum(map(getsizeof, texts)))
    if name == "expandtabs":
        return (1 + subject.count("\t")) * (numbers or 8)
    if name in ("wordwrap", "translate"):
        return len(subject) * (PIECE_BYTES + sum(map(getsizeof, texts)))
    return 0


def _count(values: Sequence[Any]) -> int:
    """Of how many a `join` makes one: of the list's, whichever of its two that is."""
    return sum(len(value) for value in values if isinstance(value, (list, str)))


def bytes_formatted(form: str, values: Sequence[Any]) -> int:
    """About what a format makes at most: each of its fields as wide as it says, and all values in each."""
    numbers = sum(int(number[:18]) for number in re.findall(r"\d+", form))
    numbers += sum(abs(value) for value in values if isinstance(value, int)) if re.search(r"\*|{[^}]*{", form) else 0
    fields = 1 + form.count("%") + form.count("{")
    return getsizeof(form) + 4 * numbers + fields * sum(map(size_of, values))


def bytes_inside(value: Any) -> int:
    """What is repeated when it is multiplied: not the object's own head."""
    return getsizeof(value) - getsizeof(value[:0]) if isinstance(value, (str, bytes, list, tuple)) else 0


def check_integer(bits: int) -> None:
    if bits > MOST_INTEGER_BITS:
        raise TooLarge


def size_of(value: Any) -> int:
    """About the bytes of a value's text. TooLarge if that is too much: lists may hold each other often."""
    size, rest = 0, [value]
    while rest:
        one = rest.pop()
        size += getsizeof(one) + PART_BYTES
        if size > MOST_BYTES:
            raise TooLarge
        if isinstance(one, dict):
            rest += one
            rest += one.values()
        elif isinstance(one, (list, tuple)):
            rest += one
    return size
