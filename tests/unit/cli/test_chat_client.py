import pytest

from cli.chat_client import Chunk, Timing, parse_line
from cli.problems import Problem


def test_a_line_gives_its_text():
    assert parse_line('data: {"choices": [{"delta": {"content": "Hi"}}], "usage": null}') == Chunk("Hi")


def test_the_usage_comes_in_a_chunk_without_choices():
    assert parse_line('data: {"choices": [], "usage": {"completion_tokens": 7}}') == Chunk("", 7)


def test_a_chunk_with_a_role_or_an_end_has_no_text():
    assert parse_line('data: {"choices": [{"delta": {"role": "assistant", "content": null}}]}') == Chunk("")


@pytest.mark.parametrize("line", ["", ": keep-alive", "data: [DONE]", "event: ping"])
def test_lines_that_carry_nothing_are_passed_over(line: str):
    assert parse_line(line) is None


def test_an_error_in_the_stream_is_told():
    with pytest.raises(Problem, match="out of luck"):
        parse_line('data: {"error": {"message": "out of luck"}}')


def test_a_stream_of_something_else_is_told():
    with pytest.raises(Problem, match="not JSON"):
        parse_line("data: <html>")


def test_times_are_first_token_and_the_mean_gap_after_it():
    timing = Timing.of(tokens=5, sent_at=10.0, first_at=10.25, last_at=10.75)
    assert timing == Timing(tokens=5, ttft_seconds=0.25, tpot_seconds=0.125)
    assert str(timing) == "5 tokens, TTFT 250 ms, TPOT 125.0 ms"


def test_one_token_has_no_gap():
    assert Timing.of(tokens=1, sent_at=0.0, first_at=1.0, last_at=1.0).tpot_seconds is None
