"""What a client has received, and how it differs from what it should have received. Pure."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Choice:
    text: str = ""
    tokens: list[str] = field(default_factory=list)  # if log-probabilities were asked for
    finish: str | None = None


@dataclass(slots=True)
class Answer:
    """One streamed answer as it grows."""

    choices: dict[int, Choice] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        for part in event["choices"]:
            choice = self.choices.setdefault(part["index"], Choice())
            choice.text += part["text"] if "text" in part else part["delta"].get("content") or ""
            logprobs = part.get("logprobs") or {}
            choice.tokens += logprobs.get("tokens", [])
            choice.tokens += [one["token"] for one in logprobs.get("content") or []]
            choice.finish = part["finish_reason"] or choice.finish


@dataclass(frozen=True, slots=True)
class Difference:
    """In tokens where the client was told tokens, else in characters."""

    lost: int
    repeated: int
    what: str


def difference(got: Answer, wanted: Answer, *, whole: bool) -> Difference | None:
    """None: it is right. `whole`: as far as its end; else whatever there is has to be right."""
    if whole and set(got.choices) != set(wanted.choices):
        return Difference(0, 0, f"choices {sorted(got.choices)} instead of {sorted(wanted.choices)}")
    for index, choice in got.choices.items():
        found = _difference(choice, wanted.choices[index], whole)
        if found is not None:
            return found
    return None


def _difference(got: Choice, wanted: Choice, whole: bool) -> Difference | None:
    told = bool(wanted.tokens)
    ours, theirs = (got.tokens, wanted.tokens) if told else (got.text, wanted.text)
    if whole:
        if (ours, got.text, got.finish) == (theirs, wanted.text, wanted.finish):
            return None
    elif theirs[: len(ours)] == ours and wanted.text.startswith(got.text):
        return None
    same = next((i for i, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), len(ours))
    what = f"{len(ours)} instead of {len(theirs)}, the first {min(same, len(theirs))} right; ended by {got.finish}"
    what += f", wanted {wanted.finish}: ...{ours[same : same + 8]!r}, wanted ...{theirs[same : same + 8]!r}"
    lost, repeated = max(0, len(theirs) - len(ours)) if whole else 0, max(0, len(ours) - len(theirs))
    return Difference(lost, repeated, what)
