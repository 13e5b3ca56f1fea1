"""A prefill instance in virtual time. What it computes next is decided by `shared.policy.prefill`."""

from collections import deque

from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.world import World
from shared.kv.layout import blocks_for
from shared.messages.instances import Capacity, Load
from shared.policy.prefill import Waiting, next_prefill_batch
from shared.specs.ids import InstanceId


class PrefillInstance:
    """Queue, pipeline and KV blocks. Blocks are taken when a batch starts, free when the KV is pulled."""

    def __init__(self, world: World, name: InstanceId, latency: Latency, capacity: Capacity, batch_tokens: int) -> None:
        self._world, self.id, self._latency, self.capacity = world, name, latency, capacity
        self._batch_tokens, self._block_tokens = batch_tokens, capacity.block_tokens
        self._waiting: deque[int] = deque()
        self._sizes: deque[Waiting] = deque()  # of those
        self._stages = [0.0] * latency.pp  # when each is free
        self._busy = False  # the first stage
        self._computing: dict[int, int] = {}  # request -> tokens
        self.free_blocks = capacity.blocks
        self.held: dict[int, int] = {}  # computed, to be pulled: request -> blocks
        self.link_free_at = 0.0
        self.busy_seconds = 0.0  # of the first stage

    def start(self, request: int, source: None, now: float) -> None:
        tokens = self._world.context[request]
        self._waiting.append(request)
        self._sizes.append(Waiting(tokens, blocks_for(tokens, self._block_tokens)))
        if not self._busy:
            self._launch(now)

    def release(self, request: int, now: float) -> None:
        """Its KV has been pulled."""
        self.free_blocks += self.held.pop(request)
        if not self._busy and self._waiting:
            self._launch(now)

    def load(self) -> Load:
        queued = sum(size.tokens for size in self._sizes) + sum(self._computing.values())
        return Load(
            queued_requests=len(self._waiting) + len(self._computing),
            queued_tokens=queued,
            free_blocks=self.free_blocks,
            held_blocks=sum(self.held.values()),
        )

    def requests(self) -> list[int]:
        return [*self._waiting, *self._computing, *self.held]

    def _launch(self, now: float) -> None:
        count = next_prefill_batch(self._sizes, self._batch_tokens, self.free_blocks)
        if not count:
            return
        batch, tokens, squares = [], 0, 0
        prefill_at = self._world.records.prefill_at
        for _ in range(count):
            request, size = self._waiting.popleft(), self._sizes.popleft()
            tokens += size.tokens
            squares += size.tokens * size.tokens
            self.free_blocks -= size.blocks
            self.held[request] = size.blocks
            self._computing[request] = size.tokens
            if prefill_at[request] > now:
                prefill_at[request] = now
            batch.append(request)
        first, later = self._latency.prefill_stages(tokens, squares)
        end = now + first
        self._stages[0] = end
        for stage in range(1, len(self._stages)):
            end = max(end + self._latency.send, self._stages[stage]) + later
            self._stages[stage] = end
        self.busy_seconds += first
        self._busy = True
        self._world.at(self._stages[0], self._first_stage_free, batch if len(self._stages) == 1 else None)
        if len(self._stages) > 1:
            self._world.at(end, self._done, batch)

    def _first_stage_free(self, now: float, batch: list[int] | None) -> None:
        self._busy = False
        if batch is not None:
            self._done(now, batch)
        if not self._busy and self._waiting:
            self._launch(now)

    def _done(self, now: float, batch: list[int]) -> None:
        for request in batch:
            del self._computing[request]
            if not self._world.first_token(request, self, now):  # the answer is complete: nobody needs its KV
                self.free_blocks += self.held.pop(request)
