from hypothesis import given
from hypothesis import strategies as st

from services.gateway.text import ChoiceText, Piece
from services.gateway.tokenizer import Tokenizer
from shared.messages.tokens import Finish, TokenLogprobs

SCORE = TokenLogprobs(token=-0.5)


def run(
    text: ChoiceText, tokens: list[int], sizes: list[int], finish: Finish, scored: bool = False
) -> tuple[str, list[Piece]]:
    """Push the tokens in groups of these sizes until the text stops."""
    pieces: list[Piece] = []
    while tokens and not text.stopped:
        size = sizes.pop() if sizes else len(tokens)
        group, tokens = tokens[:size], tokens[size:]
        pieces.append(text.push(group, [SCORE] * len(group) if scored else (), None if tokens else finish))
    return "".join(piece.text for piece in pieces), pieces


@given(
    words=st.lists(st.sampled_from(["stop", "st", "op", " ", "日本", "🙂"]), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 4), max_size=20),
)
def test_text_ends_before_the_stop_string_whatever_the_grouping(
    tokenizer: Tokenizer, words: list[str], sizes: list[int]
) -> None:
    whole = "".join(words)
    text = ChoiceText(tokenizer, (), ["stop", "日本 "], min_tokens=0)
    shown, _ = run(text, tokenizer.encode_now(whole, special_tokens=False), sizes, "length")
    found = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in ("stop", "日本 ") if stop in whole]
    assert shown == (whole[: min(found)[1]] if found else whole)
    assert text.stopped == bool(found)


def test_tokens_are_counted_up_to_the_one_that_completes_the_stop_string(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_now("ab#cd", special_tokens=False)
    text = ChoiceText(tokenizer, (), ["#"], min_tokens=0)
    shown, _ = run(text, tokens, [], "length")
    assert (shown, text.tokens) == ("ab", 3)


def test_the_stop_token_is_counted_and_is_not_text(tokenizer: Tokenizer) -> None:
    for stops in ([], ["#"]):
        text = ChoiceText(tokenizer, (), stops, min_tokens=0)
        shown, _ = run(text, [*tokenizer.encode_now("ab", special_tokens=False), 0], [], "stop")
        assert (shown, text.tokens) == ("ab", 3)


def test_the_beginning_of_a_stop_string_is_shown_when_the_answer_ends_with_it(tokenizer: Tokenizer) -> None:
    text = ChoiceText(tokenizer, (), ["END"], min_tokens=0)
    shown, _ = run(text, tokenizer.encode_now("the EN", special_tokens=False), [], "length")
    assert shown == "the EN"


def test_stop_strings_are_not_looked_for_below_min_tokens(tokenizer: Tokenizer) -> None:
    text = ChoiceText(tokenizer, (), ["#"], min_tokens=3)
    shown, _ = run(text, tokenizer.encode_now("a#b#c", special_tokens=False), [1, 1, 1, 1, 1], "length")
    assert shown == "a#b"


def test_scored_tokens_come_with_the_text_they_are_part_of(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_now("x語y", special_tokens=False)
    text = ChoiceText(tokenizer, (), (), min_tokens=0)
    _, pieces = run(text, tokens, [1] * len(tokens), "length", scored=True)
    scored = [one for piece in pieces for one in piece.scored]
    assert [one.token for one in scored] == tokens
    assert [one.offset for one in scored] == [0, *[1] * (len(tokens) - 2), 2]
    assert all(piece.text or not piece.scored for piece in pieces)


def test_tokens_of_the_stop_string_are_not_scored(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_now("ab##", special_tokens=False)
    text = ChoiceText(tokenizer, (), ["##"], min_tokens=0)
    shown, pieces = run(text, tokens, [1] * 4, "length", scored=True)
    assert shown == "ab"
    assert [one.token for piece in pieces for one in piece.scored] == tokens[:2]
