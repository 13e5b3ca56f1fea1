from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.tokenizer import (
    ByteDetokenizer,
    Detokenizer,
    Tokenizer,
    WindowDetokenizer,
    detokenizer_behind,
)

Kind = Callable[[Tokenizer, Sequence[int]], Detokenizer]
KINDS = (ByteDetokenizer, WindowDetokenizer)
TEXTS = ["", "plain words", "größer → 日本語", "🙂🙃👩‍👩‍👧 family", "a�b", " leading and trailing "]


def cut(tokens: list[int], sizes: list[int]) -> list[list[int]]:
    """Groups of the given sizes, the last one as long as what is left."""
    groups, start = [], 0
    for size in sizes:
        groups.append(tokens[start : start + size])
        start += size
    return [group for group in [*groups, tokens[start:]] if group]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40) | st.sampled_from(TEXTS), sizes=st.lists(st.integers(1, 5), max_size=30))
def test_any_grouping_of_the_tokens_gives_the_text_and_never_half_a_character(
    kind: Kind, tokenizer: Tokenizer, text: str, sizes: list[int]
) -> None:
    detokenizer = kind(tokenizer, ())
    pieces = [detokenizer.push(group) for group in cut(tokenizer.encode_now(text, special_tokens=False), sizes)]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == text
    if "�" not in text:
        assert "�" not in "".join(pieces)


@pytest.mark.parametrize("kind", KINDS)
@given(tokens=st.lists(st.integers(2, 300), max_size=60))
def test_invalid_bytes_come_out_as_the_tokenizer_itself_decodes_them(
    kind: Kind, tokenizer: Tokenizer, tokens: list[int]
) -> None:
    detokenizer = kind(tokenizer, ())
    text = "".join(detokenizer.push([token]) for token in tokens) + detokenizer.finish()
    assert text.replace("�", "") == tokenizer.decode(tokens).replace("�", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_waits_until_its_last_byte_is_there(kind: Kind, tokenizer: Tokenizer) -> None:
    first, *others = tokenizer.encode_now("語", special_tokens=False)
    assert others
    detokenizer = kind(tokenizer, ())
    assert detokenizer.push([first]) == ""
    assert detokenizer.push(others) == "語"


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_that_never_becomes_complete_is_shown_as_a_replacement_at_the_end(
    kind: Kind, tokenizer: Tokenizer
) -> None:
    first, *_ = tokenizer.encode_now("🙉", special_tokens=False)
    detokenizer = kind(tokenizer, ())
    assert detokenizer.push([first]) == ""
    assert detokenizer.finish() == "�"


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_run_of_garbage_is_not_withheld_for_ever(kind: Kind, tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode_now("🙉", special_tokens=False)
    detokenizer = kind(tokenizer, ())
    assert sum(len(detokenizer.push([first])) for _ in range(100)) >= 80


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_not_text(kind: Kind, tokenizer: Tokenizer) -> None:
    end = tokenizer.id_of("<|end|>")
    assert end is not None
    detokenizer = kind(tokenizer, ())
    assert detokenizer.push([end, *tokenizer.encode_now("fox", special_tokens=False), end]) == "fox"


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_context_and_not_text(kind: Kind, tokenizer: Tokenizer) -> None:
    detokenizer = kind(tokenizer, tokenizer.encode_now("the quick", special_tokens=False))
    assert detokenizer.push(tokenizer.encode_now(" brown", special_tokens=False)) == " brown"


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_that_the_prompt_began_is_the_answers(kind: Kind, tokenizer: Tokenizer) -> None:
    first, *others = tokenizer.encode_now("語", special_tokens=False)
    detokenizer = kind(tokenizer, [*tokenizer.encode_now("a", special_tokens=False), first])
    assert detokenizer.push(others) + detokenizer.finish() == "語"


def test_the_quick_way_is_for_tokenizers_that_only_join_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert isinstance(detokenizer_behind((), tokenizer), ByteDetokenizer)
    model = tokenizers.models.BPE({"▁a": 0, "<0x41>": 1}, [])
    other = tokenizers.Tokenizer(model)
    other.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    other.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(detokenizer_behind((), Tokenizer(tmp_path / "tokenizer.json")), WindowDetokenizer)


def test_the_bytes_of_all_tokens_together_are_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    text = "größer → 🙂"
    tokens = tokenizer.encode_now(text, special_tokens=False)
    assert b"".join(tokenizer.token_bytes(token) for token in tokens) == text.encode()


def test_a_special_token_has_its_name_as_bytes(tokenizer: Tokenizer) -> None:
    end = tokenizer.id_of("<|end|>")
    assert end is not None
    assert tokenizer.token_bytes(end) == b"<|end|>"
    assert tokenizer.token_bytes(10**6) == b""


async def test_a_long_text_is_encoded_as_a_short_one(tokenizer: Tokenizer) -> None:
    text = "the lazy dog " * 2000
    assert await tokenizer.encode(text, special_tokens=False) == tokenizer.encode_now(text, special_tokens=False)


def test_a_tokenizer_that_asks_for_truncation_does_not_get_it(tokenizer_file: Path, tmp_path: Path) -> None:
    truncating = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    truncating.enable_truncation(2)
    truncating.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path / "tokenizer.json").encode_now("the quick brown fox", special_tokens=False)) > 2
