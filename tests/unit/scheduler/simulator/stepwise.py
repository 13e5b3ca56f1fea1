"""A decode instance that walks through every step with the ledger and the policy, as the live one does: the simulator's
plain twin. Virtual time, one instance, contexts that arrive computed."""

from collections import deque
from dataclasses import dataclass

from services.scheduler.simulator.latency import Latency
from shared.kv.layout import blocks_for
from shared.kv.ledger import Ledger, Owner, State
from shared.policy.decode import admissible, plan_step
from shared.specs.ids import RequestId


@dataclass
class Sequence:
    ledger: Ledger
    number: int
    owner: Owner
    tokens: int
    computed: int
    left: int

    @property
    def blocks(self) -> int:
        holding = self.ledger.get(self.owner)
        assert holding is not None
        return len(holding.blocks)


class Stepwise:
    """Decides what the live intake and worker decide; `arrivals` are (time, request, context, answer tokens left)."""

    def __init__(self, latency: Latency, blocks: int, block_tokens: int, max_batch: int, move_seconds: float) -> None:
        self._latency, self._block_tokens, self._max_batch = latency, block_tokens, max_batch
        self._move_seconds, self._link_free_at = move_seconds, 0.0
        self._ledger = Ledger(blocks)
        self._members: list[Sequence] = []
        self._filling: deque[tuple[float, Sequence]] = deque()  # (when its KV is there, it)
        self._queue: deque[tuple[int, int, int]] = deque()
        self.ended: dict[int, float] = {}
        self.preempted: list[tuple[int, float]] = []

    def run(self, arrivals: list[tuple[float, int, int, int]]) -> None:
        now, waiting = 0.0, deque(arrivals)
        while waiting or self._members or self._filling:
            while self._filling and self._filling[0][0] <= now:
                member = self._filling.popleft()[1]
                self._ledger.move(member.owner, State.RUNNING)
                self._members.append(member)
            members = self._step(now)
            if not members:
                now = min([filled_at for filled_at, _ in self._filling] + [arrival[0] for arrival in waiting])
                while waiting and waiting[0][0] <= now:
                    self._take(waiting.popleft())
                continue
            end = now + self._seconds(members)
            while waiting and waiting[0][0] < end:  # admitted while the step runs
                self._take(waiting.popleft())
            self._finish(members, end)
            now = end
            self._admit(now)

    def _take(self, arrival: tuple[float, int, int, int]) -> None:
        self._queue.append(arrival[1:])
        self._admit(arrival[0])

    def _admit(self, now: float) -> None:
        while self._queue:
            number, context, left = self._queue[0]
            members = len(self._members) + len(self._filling)
            if not admissible(context, self._block_tokens, self._ledger.free, members, self._max_batch):
                return
            self._queue.popleft()
            owner = Owner(RequestId(str(number)), 0)
            self._ledger.take(owner, blocks_for(context + 1, self._block_tokens), State.RESERVED)
            self._ledger.move(owner, State.FILLING)
            self._link_free_at = max(now, self._link_free_at) + self._move_seconds
            member = Sequence(self._ledger, number, owner, context + 1, context, left)
            self._filling.append((self._link_free_at, member))

    def _step(self, now: float) -> list[Sequence]:
        plan = plan_step(self._members, "prefill_priority", self._block_tokens, self._ledger.free, 512)
        chosen = [self._members[index] for index, _ in plan.pieces]
        for member in [self._members[index] for index in plan.preempt]:
            self._members.remove(member)
            self._ledger.release(member.owner)
            self.preempted.append((member.number, now))
        for member in chosen:
            missing = blocks_for(member.computed + 1, self._block_tokens) - member.blocks
            if missing > 0:
                self._ledger.grow(member.owner, missing)
        self._ledger.check()
        return chosen

    def _seconds(self, members: list[Sequence]) -> float:
        fixed, each = self._latency.decode(len(members))
        return fixed + each * sum(member.tokens for member in members)

    def _finish(self, members: list[Sequence], end: float) -> None:
        for member in members:
            member.tokens, member.computed, member.left = member.tokens + 1, member.computed + 1, member.left - 1
            if not member.left:
                self._members.remove(member)
                self._ledger.release(member.owner)
                self.ended[member.number] = end
