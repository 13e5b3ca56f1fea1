"""Prompts of an exact length, all different: token ids, or text made with the model's tokenizer."""

from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from cli.problems import Problem

START = "a"  # of every text: it makes the words after it words
MOST_IDS = 20_000  # of the vocabulary that are looked at


class Prompts(Protocol):
    kind: str

    def make(self, number: int, tokens: int) -> list[int] | str:
        """The prompt of the `number`th request, `tokens` long."""
        ...


class TokenPrompts:
    """Random ids below `end`. The first tenth is left out: there are the special tokens of most vocabularies."""

    kind = "token ids"

    def __init__(self, end: int, seed: int) -> None:
        self._end, self._seed = end, seed

    def make(self, number: int, tokens: int) -> list[int]:
        random = np.random.default_rng((self._seed, number))
        return random.integers(self._end // 10, self._end, tokens).tolist()


class TextPrompts:
    """Random words of the tokenizer's that are one token each; special tokens are not counted."""

    kind = "text"

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        """Problem if the tokenizer has no such words."""
        self._start = len(tokenizer.encode(START, add_special_tokens=False).ids)
        self._words = _words(tokenizer, self._start)
        self._seed = seed
        if not self._words:
            raise Problem("--tokenizer: none of its words is a token of its own")

    @classmethod
    def load(cls, folder: Path, seed: int) -> "TextPrompts":
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more exact
            raise Problem(f"--tokenizer {folder}: no tokenizer.json that can be read ({error})") from error
        return cls(tokenizer, seed)

    def make(self, number: int, tokens: int) -> str:
        random = np.random.default_rng((self._seed, number))
        picks = random.integers(0, len(self._words), max(0, tokens - self._start))
        return " ".join([START, *(self._words[pick] for pick in picks)])


def _words(tokenizer: Tokenizer, start: int) -> list[str]:
    """Those that add exactly one token to a text that they follow."""
    ids = range(min(tokenizer.get_vocab_size(), MOST_IDS))
    texts = (text.strip() for text in tokenizer.decode_batch([[number] for number in ids]))
    words = sorted({text for text in texts if text.isascii() and text.isalpha()})
    encoded = tokenizer.encode_batch([f"{START} {word}" for word in words], add_special_tokens=False)
    return [word for word, encoding in zip(words, encoded, strict=True) if len(encoding.ids) == start + 1]
