"""Text to token ids and back."""

import asyncio
import codecs
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import tokenizers

THREAD_ABOVE_CHARS = 8_000  # a shorter text is encoded in about a millisecond: not worth a thread
MOST_PRIMING_TOKENS = 5
MOST_CHARACTER_TOKENS = 4  # a character has at most four bytes
MOST_WITHHELD_TOKENS = 16  # then they are not a character's
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The model's tokenizer. Encoding and decoding are safe from several threads."""

    def __init__(self, file: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self._tokenizer.no_truncation()  # some models' files ask for it, and would cut prompts silently
        self._tokenizer.no_padding()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="tokenize")
        self.longest_chars = max(len(piece) for piece in self._tokenizer.get_vocab())  # of one token
        decoder = self._tokenizer.decoder
        written = "" if decoder is None else decoder.__getstate__().decode()
        self._byte_level = "ByteLevel" in written
        self.joins_bytes = self._byte_level and json.loads(written)["type"] == "ByteLevel"  # it does nothing else
        self._special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        self.token_bytes = lru_cache(maxsize=65536)(self._token_bytes)
        self.text_bytes = lru_cache(maxsize=65536)(self._text_bytes)

    @property
    def vocabulary(self) -> int:
        return self._tokenizer.get_vocab_size()

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def encode_now(self, text: str, special_tokens: bool) -> list[int]:
        """`special_tokens`: let the tokenizer add those that begin a text. A chat template writes its own."""
        return self._tokenizer.encode(text, add_special_tokens=special_tokens).ids

    async def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Like `encode_now`, without keeping the event loop from its work while a long text is encoded."""
        if len(text) <= THREAD_ABOVE_CHARS:
            return self.encode_now(text, special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.encode_now, text, special_tokens)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """One token alone; U+FFFD where it is only a part of a character."""
        return self.token_bytes(token).decode(errors="replace")

    def _token_bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level and all(character in _BYTE_OF for character in piece):
            return bytes([_BYTE_OF[character] for character in piece])
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # byte fallback
            return bytes([int(piece[3:5], 16)])
        return self._tokenizer.decode([token], skip_special_tokens=False).encode()

    def _text_bytes(self, token: int) -> bytes:
        """What the token adds to a text: nothing if it is special."""
        return b"" if token in self._special else self._token_bytes(token)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Detokenizer(Protocol):
    """Turns a stream of token ids into text, and never splits a character."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is now certain."""
        ...

    def finish(self) -> str:
        """The rest, when no more tokens come: U+FFFD for a character that never became complete."""
        ...


def detokenizer_behind(prompt: Sequence[int], tokenizer: Tokenizer) -> Detokenizer:
    kind = ByteDetokenizer if tokenizer.joins_bytes else WindowDetokenizer
    return kind(tokenizer, prompt)


class ByteDetokenizer:
    """For byte-level BPE: every token stands for the same bytes wherever it is, and the text is UTF-8."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._bytes_of = tokenizer.text_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.push(prompt[-MOST_PRIMING_TOKENS:])  # the answer may complete the prompt's last character

    def push(self, tokens: Sequence[int]) -> str:
        return self._decode(b"".join([self._bytes_of(token) for token in tokens]))

    def finish(self) -> str:
        return self._decode(b"", True)


class WindowDetokenizer:
    """For any tokenizer.

    A character may be spread over tokens, and a decoder may treat a token differently behind another one. So each new
    piece is the difference of two decodings that begin at the same, earlier token.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-MOST_PRIMING_TOKENS:])
        self._before = len(self._window)  # tokens of the window whose text is already out
        self._out_chars = len(tokenizer.decode(self._window).rstrip(INCOMPLETE))  # of that text

    def push(self, tokens: Sequence[int]) -> str:
        self._window.extend(tokens)
        size = len(self._window)
        for end in range(size, max(self._before, size - MOST_CHARACTER_TOKENS), -1):
            text = self._tokenizer.decode(self._window[:end])
            if not text.endswith(INCOMPLETE):
                return self._take(text, end)
        if size - self._before < MOST_WITHHELD_TOKENS:
            return ""
        return self._take(self._tokenizer.decode(self._window), size)

    def finish(self) -> str:
        return self._tokenizer.decode(self._window)[self._out_chars :]

    def _take(self, text: str, end: int) -> str:
        """`text`: of the window's first `end` tokens."""
        piece = text[self._out_chars :]
        if piece or end - self._before >= MOST_WITHHELD_TOKENS:
            self._window = self._window[self._before :]
            self._before = end - self._before
            self._out_chars = len(self._tokenizer.decode(self._window[: self._before]))
        return piece  # if there is none, these are special tokens, and the next one still needs what is before them


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2): printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
