"""A short look at what the fuzzer looks at for long, and everything that it has found."""

import random

import pytest

from tests.fuzz.targets import TARGETS

FOUND = [
    ("model_config", b'{"architectures": 4, "vocab_size": 64}'),
    (
        "model_config",
        b'{"architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, '
        b'"vocab_size": 64, "eos_token_id": "x"}',
    ),
    ("request_trace", b'{"ar\x9bival_s": 0.5, "input_len": 3, "output_len": 2}\n'),
    ("request_trace", b'{"arrival_s": 0.5, "input_len": 1e999, "output_len": 2}\n'),
    ("chat_template", b"{{" + b"(" * 2000),
    ("chat_template", b"{% for i in x %}" * 30 + b"{% endfor %}" * 30),
    ("special_tokens", b"[]"),
    ("special_tokens", b'{"eos_token": "\\ud800"}'),
    ("tokenizer_config", b'{"chat_template": [{"name": "default"}, {"template": "x"}, 5]}'),
    ("tokenizer_config", b'{"chat_template": 5}'),
    ("tokenizer_config", b"[" * 100_000),
    ("template_file", b"\xff"),
    (
        "tokenizer",
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "continuing_subword_prefix": "##########", '
        b'"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}',
    ),
    (
        "bus_message",
        bytes.fromhex("92ad5375626d69745265717565737497a17201a9676174657761792d31a16d920102909d0307cb")
        + b"\xff" * 7
        + b"\x0a\xcb\x3f\xf0"
        + bytes(6)
        + (b"\xcb" + bytes(8)) * 3
        + b"\xcb\x3f\xf0"
        + bytes(6)
        + b"\0\x90\xc0\0\x90",
    ),
]


@pytest.mark.parametrize(("target", "data"), FOUND)
def test_what_was_found_once_is_refused(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_seed_is_taken_and_what_is_near_it_is_taken_or_refused(target: str) -> None:
    chance = random.Random(target)
    for seed in TARGETS[target].seeds:
        TARGETS[target].parse(seed)
        for _ in range(10):
            TARGETS[target](mutated(seed, chance))


def test_a_file_of_spans_is_looked_into() -> None:
    target = TARGETS["span_file"]
    assert [len(target.parse(seed)) for seed in target.seeds] == [2]  # found as a call, and as a span of its trace


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, or a piece cut out, or doubled."""
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    start, end = sorted(chance.randrange(len(changed) + 1) for _ in range(2))
    return bytes(chance.choice((changed, changed[:start] + changed[end:], changed[:end] + changed[start:])))
