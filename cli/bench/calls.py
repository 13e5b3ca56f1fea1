"""What is sent, when it is due, and what became of it. Seconds count from the start of the run."""

from dataclasses import dataclass, field
from typing import Any, Self

from services.scheduler.simulator.workload import Trace


@dataclass(frozen=True, slots=True)
class Call:
    due: float
    prompt_tokens: int
    output_tokens: int
    warms_up: bool = False  # sent like the others, counted nowhere


def schedule(trace: Trace, warmup: int) -> list[Call]:
    """The requests of `trace` as they arrive in it; the first `warmup` of them only warm up."""
    return [
        Call(arrival, prompt, answer, number < warmup)
        for number, (arrival, prompt, answer) in enumerate(
            zip(trace.arrivals, trace.inputs, trace.outputs, strict=True)
        )
    ]


@dataclass(slots=True)
class Answer:
    """What the client has seen of a call so far. None: it has not come to that."""

    call: Call
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    ended: bool = False  # with all its tokens
    status: int = 0
    retry_after: float = 0.0  # seconds, as a refusal has said
    error: str = ""
    prompt_tokens: int = 0  # as the server counts
    output_tokens: int = 0
    gaps: list[float] = field(default_factory=list)  # between two pieces

    @property
    def over(self) -> bool:
        return self.ended or bool(self.error)

    @property
    def late(self) -> float | None:
        """How much later than due it was sent: the generator's fault, not the server's."""
        return None if self.sent is None else self.sent - self.call.due

    @property
    def ttft(self) -> float | None:
        """From the instant at which it was due, so that a delay in sending hides nothing."""
        return None if self.first is None else self.first - self.call.due

    @property
    def tpot(self) -> float | None:
        """Mean time per token after the first; 0 if there is no second."""
        if not self.ended or self.first is None or self.last is None:
            return None
        return (self.last - self.first) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0

    def keeps(self, ttft_seconds: float, tpot_seconds: float) -> bool:
        return (
            self.ttft is not None and self.tpot is not None and self.ttft <= ttft_seconds and self.tpot <= tpot_seconds
        )

    def has_missed(self, now: float, ttft_seconds: float, tpot_seconds: float) -> bool:
        """Whether it is clear at `now` that it does not keep its targets."""
        if self.over:
            return not self.keeps(ttft_seconds, tpot_seconds)
        return (now if self.first is None else self.first) - self.call.due > ttft_seconds

    def to_json(self) -> dict[str, Any]:
        longest = max(self.gaps, default=0.0)
        return {
            "due_s": round(self.call.due, 6),
            "sent_s": _rounded(self.sent),
            "first_s": _rounded(self.first),
            "last_s": _rounded(self.last),
            "longest_gap_s": round(longest, 6),
            "ended": self.ended,
            "status": self.status,
            "error": self.error,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "wanted_prompt_tokens": self.call.prompt_tokens,
            "wanted_output_tokens": self.call.output_tokens,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        call = Call(row["due_s"], row["wanted_prompt_tokens"], row["wanted_output_tokens"])
        return cls(
            call=call,
            sent=row["sent_s"],
            first=row["first_s"],
            last=row["last_s"],
            ended=row["ended"],
            status=row["status"],
            error=row["error"],
            prompt_tokens=row["prompt_tokens"],
            output_tokens=row["output_tokens"],
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
