"""What the clients ask for, over and over: greedy and seeded sampling, n > 1, stop strings, log-probabilities."""

import random
from dataclasses import dataclass
from typing import Any

SEED = 20241
CALLS = 40
SHORTEST_TOKENS, LONGEST_TOKENS = 40, 160
MOST_PROMPT_LINES = 24
STOPS = ["ing", "(", "_t"]  # what the demo model says sooner or later


@dataclass(frozen=True, slots=True)
class Call:
    path: str
    body: dict[str, Any]

    @property
    def choices(self) -> int:
        return self.body.get("n", 1)


def calls(model: str) -> list[Call]:
    """Always the same ones: their answers are known once they have been given."""
    chance = random.Random(SEED)
    return [_call(model, number, chance) for number in range(CALLS)]


def _call(model: str, number: int, chance: random.Random) -> Call:
    text = f"def answer_{number}(question):\n" + f"    # case {number}\n" * chance.randrange(1, MOST_PROMPT_LINES)
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "ignore_eos": True,
        "max_tokens": chance.randrange(SHORTEST_TOKENS, LONGEST_TOKENS),
        "temperature": 0,
    }
    if number % 2:
        body |= {"temperature": 1.0, "top_p": 0.95, "seed": 1000 + number}
    if number % 5 == 1:
        body["n"] = 2
    if number % 5 == 2:
        body["stop"] = STOPS
    chats = number % 8 == 7
    if number % 3 == 0:
        body["logprobs"] = True if chats else 1
    if number % 7 == 3:
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.5}
    if chats:
        return Call("/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]})
    return Call("/v1/completions", body | {"prompt": text})
