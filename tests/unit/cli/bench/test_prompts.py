"""Prompts have the length they are asked for, and no two are alike."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from cli.bench.prompts import TextPrompts, TokenPrompts
from cli.problems import Problem
from tests.tiny_tokenizer import write_tokenizer


def test_token_ids_are_in_the_vocabulary_and_differ_by_request_and_seed():
    prompts = TokenPrompts(1000, seed=3)
    first = prompts.make(0, 200)
    assert len(first) == 200
    assert all(100 <= token < 1000 for token in first)
    assert first == TokenPrompts(1000, seed=3).make(0, 200)
    assert first not in (prompts.make(1, 200), TokenPrompts(1000, seed=4).make(0, 200))


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_text_has_as_many_tokens_as_asked_for(tmp_path: Path, tokens: int):
    write_tokenizer(tmp_path)
    text = TextPrompts.load(tmp_path, seed=1).make(5, tokens)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens


def test_a_folder_without_a_tokenizer_is_said(tmp_path: Path):
    with pytest.raises(Problem, match="can be read"):
        TextPrompts.load(tmp_path, seed=1)
