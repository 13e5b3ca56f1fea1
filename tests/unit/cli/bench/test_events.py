"""A stream of completion events, in whatever pieces it arrives."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.bench.events import MOST_LINE_BYTES, CompletionEvents


def event(text: str, usage: object = None) -> bytes:
    choices = [{"index": 0, "text": text, "finish_reason": None}]
    return b"data: " + json.dumps({"id": "c", "choices": choices, "usage": usage}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3}
END = b"data: " + json.dumps({"id": "c", "choices": [], "usage": USAGE}).encode() + b"\n\ndata: [DONE]\n\n"
STREAM = event("one") + b": keep-alive\n\n" + event('"text": two') + event("") + END


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_wherever_it_is_cut_pieces_usage_and_end_are_found(cuts: list[int]):
    events = CompletionEvents()
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    assert sum(events.feed(STREAM[a:b]) for a, b in itertools.pairwise(edges)) == 3
    assert (events.usage, events.done, events.error) == (USAGE, True, "")


def test_a_piece_is_counted_when_its_line_is_complete():
    events = CompletionEvents()
    data = event("one")
    assert events.feed(data[:-2]) == 0
    assert events.feed(data[-2:]) == 1


def test_lines_may_end_with_carriage_returns():
    events = CompletionEvents()
    assert events.feed(STREAM.replace(b"\n", b"\r\n")) == 3
    assert events.done


def test_usage_beside_the_last_text_is_taken_too():
    events = CompletionEvents()
    assert events.feed(event("one") + event("two", USAGE)) == 2
    assert events.usage == USAGE


@pytest.mark.parametrize("error", [{"message": "out of luck", "code": 500}, "out of luck"])
def test_an_error_event_says_why(error: object):
    events = CompletionEvents()
    assert events.feed(event("one") + b"data: " + json.dumps({"error": error}).encode() + b"\n\n") == 1
    assert events.error == "out of luck"


def test_what_is_no_json_or_no_line_is_an_error():
    events = CompletionEvents()
    events.feed(b"data: <html>\n")
    assert "no JSON object" in events.error
    events = CompletionEvents()
    events.feed(b"x" * (MOST_LINE_BYTES + 1))
    assert "1 MiB" in events.error
