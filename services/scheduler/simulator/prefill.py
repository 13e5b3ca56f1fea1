"""A prefill instance in virtual time. What it computes next is decided by `shared.policy.prefill`."""

from collections import deque
from itertools import chain

from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.world import Seen, World
from shared.messages.instances import Capacity, Load
from shared.policy.prefill import Waiting, next_prefill_batch
from shared.specs.ids import InstanceId, RequestId


class PrefillInstance:
    """Queue, pipeline and KV blocks. Blocks are taken when a batch starts, free when the KV is pulled."""

    def __init__(self, world: World, name: InstanceId, latency: Latency, capacity: Capacity, batch_tokens: int) -> None:
        self._world, self.id, self._latency, self.capacity = world, name, latency, capacity
        self._batch_tokens, self._block_tokens = batch_tokens, capacity.block_tokens
        self._waiting: deque[int] = deque()
        self._sizes: deque[Waiting] = deque()  # of those
        self._stages = [0.0] * latency.pp  # when each is free
        self._busy = False  # the first stage
        self._computing: deque[list[int]] = deque()  # batches in the pipeline
        self._held: dict[int, int] = {}  # being computed, or to be pulled: request -> blocks
        self.free_blocks = capacity.blocks
        self.link_free_at = 0.0
        self.busy_seconds = 0.0  # of the first stage

    def start(self, request: int, source: None, now: float) -> None:
        tokens = self._world.context[request]
        self._waiting.append(request)
        self._sizes.append((tokens, -(-tokens // self._block_tokens)))
        if not self._busy:
            self._launch(now)

    def release(self, request: int, now: float) -> None:
        """Its KV has been pulled."""
        self.free_blocks += self._held.pop(request)
        if not self._busy and self._waiting:
            self._launch(now)

    @property
    def present(self) -> dict[int, tuple[RequestId, int]]:
        pairs = self._world.pairs
        return {request: pairs[request] for request in (*self._held, *self._waiting)}

    def load(self, now: float) -> Load:
        queued = [*chain.from_iterable(self._computing), *self._waiting]
        context = self._world.context
        return Load(
            queued_requests=len(queued),
            queued_tokens=sum([context[request] for request in queued]),
            free_blocks=self.free_blocks,
            held_blocks=self.capacity.blocks - self.free_blocks,
        )

    def seen(self, now: float) -> Seen:
        return Seen(len(self._waiting) + sum(map(len, self._computing)), 0, self.free_blocks)

    def _launch(self, now: float) -> None:
        count = next_prefill_batch(self._sizes, self._batch_tokens, self.free_blocks)
        if not count:
            return
        waiting, sizes, prefill_at = self._waiting, self._sizes, self._world.records.prefill_at
        held, batch, tokens, squares = self._held, [], 0, 0
        for _ in range(count):
            request, (length, blocks) = waiting.popleft(), sizes.popleft()
            batch.append(request)
            tokens += length
            squares += length * length
            held[request] = blocks
            self.free_blocks -= blocks
            if prefill_at[request] > now:
                prefill_at[request] = now
        self._computing.append(batch)
        first, later = self._latency.prefill_stages(tokens, squares)
        self.busy_seconds += first
        self._busy = True
        if len(self._stages) == 1:
            self._world.at(now + first, self._computed, batch)
            return
        self._world.at(now + first, self._first_stage_free, None)
        end = self._stages[0] = now + first
        for stage in range(1, len(self._stages)):
            end = max(end + self._latency.send, self._stages[stage]) + later
            self._stages[stage] = end
        self._world.at(end, self._done, batch)

    def _computed(self, now: float, batch: list[int]) -> None:
        self._busy = False
        self._done(now, batch)
        if self._waiting and not self._busy:
            self._launch(now)

    def _first_stage_free(self, now: float, _: None) -> None:
        self._busy = False
        if self._waiting:
            self._launch(now)

    def _done(self, now: float, batch: list[int]) -> None:
        world, tell_computed = self._world, self._world.kv_computed
        self._computing.popleft()
        for request in batch:
            if world.first_token(request, now):
                tell_computed(now, (request, self.id))
            else:  # the answer is complete: nobody needs its KV
                self.free_blocks += self._held.pop(request)
                world.last_token(request, now)
