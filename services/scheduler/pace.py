"""How fast an instance computes contexts, learned from when they were ready. Pure."""

from dataclasses import dataclass

MEMORY_SECONDS = 10.0  # of work; older work counts less and less
LEAST_SECONDS = 0.05  # of work, below which nothing is known


@dataclass(slots=True)
class Pace:
    """Counts only the time in which there was something to compute."""

    since: float = 0.0  # when it began with what it computes now: came to it, or ended what was before
    tokens: float = 0.0
    seconds: float = 0.0

    def began(self, now: float) -> None:
        """It had nothing to do, and now it has."""
        self.since = now

    def computed(self, tokens: int, now: float) -> None:
        """A context is ready."""
        spent = max(0.0, now - self.since)
        keep = MEMORY_SECONDS / (MEMORY_SECONDS + spent)
        self.tokens = self.tokens * keep + tokens
        self.seconds = self.seconds * keep + spent
        self.since = now

    @property
    def tokens_per_second(self) -> float:
        """0: not known yet."""
        return self.tokens / self.seconds if self.seconds >= LEAST_SECONDS else 0.0

    def done_by(self, now: float) -> float:
        """Tokens that it has probably computed of what it computes now."""
        return max(0.0, now - self.since) * self.tokens_per_second
