"""One request while it is decoded here."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.util.types import AttributeValue

from shared.kv.ledger import Holding, Owner
from shared.messages.handoff import KvHandle
from shared.messages.requests import SubmitRequest
from shared.specs.ids import BlockId
from shared.telemetry import traces


@dataclass(slots=True, eq=False)
class Arrival:
    """Taken into the queue; owns no blocks yet."""

    work: SubmitRequest
    kv: KvHandle | None  # None: its context is prefilled here
    trace: Context
    arrived_ns: int = field(default_factory=time.time_ns)
    renewed_at: float = field(default_factory=time.monotonic)  # when its lease was last seen to be young
    dropped: bool = False  # aborted or replaced: whoever works on it lets go at the next point

    @property
    def owner(self) -> Owner:
        return Owner(self.work.request, self.work.attempt)

    def record_span(self, name: str, start_ns: int, attributes: Mapping[str, AttributeValue]) -> None:
        """A stage of this request that ends now."""
        request = {traces.REQUEST_ID: self.work.request, traces.ATTEMPT: self.work.attempt}
        traces.record_span(name, self.trace, start_ns, time.time_ns(), request | dict(attributes))


@dataclass(slots=True, eq=False)
class Sequence:
    """Owns blocks and takes part in steps. Satisfies `shared.policy.decode.Member`."""

    arrival: Arrival
    holding: Holding  # its blocks grow in place
    text: list[int]  # prompt, then everything generated: the engine reads new tokens from here
    generated: list[int]
    computed: int  # tokens whose KV is in the blocks
    started_ns: int = field(default_factory=time.time_ns)

    @classmethod
    def of(cls, arrival: Arrival, holding: Holding) -> "Sequence":
        """Ready for its next step: with the pulled KV and the first token, or with all of its context to compute."""
        work, kv = arrival.work, arrival.kv
        generated = [*work.generated, kv.first_token] if kv else list(work.generated)
        return cls(arrival, holding, [*work.prompt, *generated], generated, kv.tokens if kv else 0)

    @property
    def work(self) -> SubmitRequest:
        return self.arrival.work

    @property
    def tokens(self) -> int:
        return len(self.text)

    @property
    def blocks(self) -> int:
        return len(self.holding.blocks)

    @property
    def block_table(self) -> list[BlockId]:
        return self.holding.blocks

    def append(self, token: int) -> None:
        self.text.append(token)
        self.generated.append(token)
