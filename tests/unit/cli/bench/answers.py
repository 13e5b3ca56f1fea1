"""Answers made up for tests."""

from cli.bench.calls import Answer, Call


def answered(ttft: float = 0.1, tpot: float = 0.01, *, due: float = 0.0, tokens: int = 11, late: float = 0.0) -> Answer:
    """One that ended with all its tokens."""
    first = due + ttft
    return Answer(
        Call(due, 5, tokens),
        sent=due + late,
        first=first,
        last=first + tpot * (tokens - 1),
        ended=True,
        status=200,
        prompt_tokens=5,
        output_tokens=tokens,
    )


def failed(due: float = 0.0) -> Answer:
    return Answer(Call(due, 5, 11), sent=due, status=429, error="429 full")
