"""One sequence on its way: its life, and what whoever answers the client needs of it."""

import contextvars
from typing import Protocol

from services.gateway.requests import RequestLife
from services.gateway.targets import LatencyTargets
from shared.messages.requests import RequestEnded
from shared.messages.tokens import Finish, TokenLogprobs
from shared.specs.ids import InstanceId


class News(Protocol):
    """What is told that there is something to take: an outbox's bell, or an event."""

    def set(self) -> None: ...


class LiveRequest:
    def __init__(
        self,
        life: RequestLife,
        arrived_at: float,
        deadline_seconds: float,
        targets: LatencyTargets,
        news: News,
    ) -> None:
        self.life = life
        self.arrived_at = arrived_at
        self.deadline_at = arrived_at + deadline_seconds
        self.targets = targets
        self.news = news  # set when there is something to take
        self.context = contextvars.copy_context()  # of the HTTP request: its trace, its log fields
        self.newest_attempt = 0  # of those that were submitted
        self._taken = 0

    def ended(self, gateway: InstanceId) -> RequestEnded:
        """What became of it."""
        life, end = self.life, self.life.end
        assert end is not None
        return RequestEnded(
            request=life.request,
            attempt=life.attempt,
            gateway=gateway,
            outcome=end.outcome,
            prompt_tokens=len(life.prompt),
            output_tokens=end.output_tokens,
            ttft_seconds=None if life.first_token_at is None else life.first_token_at - self.arrived_at,
            tpot_seconds=life.seconds_per_token(),
        )

    def take(self) -> tuple[list[int], list[TokenLogprobs], Finish | None]:
        """The tokens since the last call; and, with the last of them, how the model ended."""
        life, start = self.life, self._taken
        self._taken = len(life.tokens)
        return life.tokens[start:], life.logprobs[start:], life.finish
