"""A decode instance in virtual time. Whom it admits and what it steps is decided by `shared.policy.decode`.

While the batch stays the same its steps are not walked through: their times and blocks are sums.
"""

import math
from collections import deque
from heapq import heappop

from services.scheduler.simulator.batch import Batch, Member
from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.prefill import PrefillInstance
from services.scheduler.simulator.walked import Walked
from services.scheduler.simulator.world import Seen, World
from shared.messages.instances import Capacity, Load
from shared.policy.decode import Order, admissible, can_decode, plan_whole
from shared.specs.ids import InstanceId, RequestId

CLOSE = 1e-6  # of a step: a thousand times more than what rounding can do
FAR = 1 - CLOSE


class DecodeInstance:
    """Queue, transfers, members and KV blocks."""

    def __init__(
        self, world: World, name: InstanceId, latency: Latency, capacity: Capacity, order: Order, prefill_tokens: int
    ) -> None:
        self.world, self.id, self.latency, self.capacity = world, name, latency, capacity
        self.order: Order = order
        self.prefill_tokens, self._block_tokens = prefill_tokens, capacity.block_tokens
        self.present: dict[int, tuple[RequestId, int]] = {}  # with attempts, as its beats list them
        self._queue: deque[tuple[int, PrefillInstance | None]] = deque()
        self._filling: dict[int, PrefillInstance] = {}
        self._filled: list[int] = []  # members from the next step on
        self.joining: list[Member] = []  # the same, with something to be computed
        self.batch = Batch(capacity.block_tokens)
        self._walked = Walked(self)
        self._residents = 0  # all that own blocks, filling ones included
        self.room = capacity.blocks  # for the members of the batch: what nobody else owns
        # The steps that are under way: from _since on, _planned of them.
        self._since, self._planned = 0.0, 0
        self._first, self._each = 0.0, 0.0  # seconds of the first of them, and by how much each later one is longer
        self._most_blocks = 0  # that the batch may have when they have begun
        self._run = 0  # counts runs of steps: an older run's end means nothing
        self.stepping = False
        self.link_free_at = 0.0
        self.busy_seconds = 0.0

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    def start(self, request: int, source: PrefillInstance | None, now: float) -> None:
        self.present[request] = self.world.pairs[request]
        self._queue.append((request, source))
        self._admit(now)
        if self.joining and not self.stepping:
            self._next(now)

    def load(self, now: float) -> Load:
        context, queued = self.world.context, len(self._queue) + len(self._filling)
        tokens = sum([context[r] for r, _ in self._queue]) + sum([context[r] for r in self._filling]) if queued else 0
        return Load(
            queued_requests=queued,
            queued_tokens=tokens,
            running=self._residents - len(self._filling),
            free_blocks=self._free_blocks(now),
        )

    def seen(self, now: float) -> Seen:
        filling = len(self._filling)
        return Seen(len(self._queue) + filling, self._residents - filling, self._free_blocks(now))

    def _free_blocks(self, now: float) -> int:
        return self.room - self.batch.blocks(self._steps_begun(now) if self._planned else self._walked.decoding)

    # -- admission ----------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """From the head of the queue while there is room, as `Intake.run` does."""
        queue, world, size, most = self._queue, self.world, self._block_tokens, self.capacity.max_batch
        # Counted exactly only if so much might not be there.
        grown = self._most_blocks if self._planned else self.batch.most_blocks(1)
        while queue:
            request, source = queue[0]
            context = world.context[request]
            if not admissible(context, size, self.room - grown, self._residents, most) and not admissible(
                context, size, self._free_blocks(now), self._residents, most
            ):
                return
            queue.popleft()
            blocks = context // size + 1  # its context and the token that follows
            self.room -= blocks
            self._residents += 1
            if source is None:
                self.joining.append(Member(request, context, 0, blocks))
                self.cut_short(now)
                continue
            self._pull(request, source, now)
            if grown > self.room and self._planned and self.batch.blocks(self._planned) > self.room:
                self.cut_short(now)

    def _pull(self, request: int, source: PrefillInstance, now: float) -> None:
        """Over the links of both, one after the other."""
        world = self.world
        self._filling[request] = source
        begin = max(now, self.link_free_at, source.link_free_at)
        end = begin + world.transfer_seconds(world.context[request])
        self.link_free_at = source.link_free_at = end
        world.records.moved_from[request] = begin
        world.at(end, self._has_filled, request)

    def _has_filled(self, now: float, request: int) -> None:
        self.world.records.moved_at[request] = now
        self._filling.pop(request).release(request, now)
        self._filled.append(request)
        if self.stepping:
            self.cut_short(now)
        else:
            self._next(now)

    def let_go(self, request: int, blocks: int) -> None:
        """It has ended or is given up; it had `blocks`, and is no member of the batch."""
        self.room += blocks
        self._residents -= 1
        del self.present[request]

    # -- steps --------------------------------------------------------------------------------------------------------

    def go_on(self, now: float) -> None:
        if self._queue:
            self._admit(now)
        self._next(now)

    def _next(self, now: float) -> None:
        """Between two steps: plan the next ones and begin them."""
        if self._filled or self.joining:
            self._join_members(now)
        batch = self.batch
        if self._walked.uncomputed:
            self.stepping = True
            self._compute(now)
        elif batch.decoding:
            self.stepping = True
            steps = batch.ends[0][0] - batch.step
            self._most_blocks = most_blocks = batch.most_blocks(steps)
            if most_blocks > self.room:  # what members have and want is counted only if it might not be there
                if not can_decode(batch.blocks(1), self.room):
                    self._walked.begin_short(now)
                    return
                steps = batch.steps_within(self.room, steps)
            decoding = len(batch.decoding)
            fixed, each = self.latency.decode(decoding)
            self._since, self._planned = now, steps
            self._first = first = fixed + each * batch.context
            self._each = longer = each * decoding
            self._run = run = self._run + 1
            self.world.at(now + steps * first + longer * steps * (steps - 1) / 2, self._run_ended, run)
        else:
            self.stepping = False

    def _compute(self, now: float) -> None:
        """A step while there are contexts that are not computed."""
        batch, contexts = self.batch, list(self._walked.uncomputed.values())
        decoding = len(batch.decoding)
        lacking = [(decoding + i, m.tokens - m.computed) for i, m in enumerate(contexts)]
        self._most_blocks = most_blocks = batch.most_blocks(1)
        wanted = 0 if most_blocks <= self.room else batch.blocks(1)
        whole = plan_whole(lacking, decoding, wanted, self.room, self.order, self.prefill_tokens)
        if whole is None:
            self._walked.begin_short(now)
        else:
            self._walked.begin(now, contexts, whole)

    def _steps_begun(self, now: float) -> int:
        """How many of the steps under way have begun by now, the one in progress included. At least 1."""
        passed, first, half = now - self._since, self._first, self._each / 2
        if passed <= first:
            return 1
        linear = first - half
        root = 2 * passed / (linear + math.sqrt(linear * linear + 4 * half * passed))
        steps = math.ceil(root)
        if CLOSE < steps - root < FAR:
            return steps if steps < self._planned else self._planned
        # So near to the end of a step it must be the same instant as elsewhere:
        while steps > 1 and (steps - 1) * first + half * (steps - 1) * (steps - 2) >= passed:
            steps -= 1
        while steps * first + half * steps * (steps - 1) < passed:
            steps += 1
        return min(steps, self._planned)

    def cut_short(self, now: float) -> None:
        """The batch changes: the steps under way end with the one in progress."""
        if not self._planned:
            return  # a step that is walked through: it ends by itself
        begun = self._steps_begun(now)
        if begun < self._planned:
            self._planned = begun
            self._run += 1
            end = self._since + begun * self._first + self._each * begun * (begun - 1) / 2
            self.world.at(end, self._run_ended, self._run)

    def _run_ended(self, now: float, run: int) -> None:
        if run != self._run:
            return
        self.busy_seconds += now - self._since
        self.pass_steps(self._planned, now)
        self._planned = 0
        if self._queue:
            self._admit(now)
        self._next(now)

    def pass_steps(self, steps: int, now: float) -> None:
        """They are done; members that have their last token end."""
        batch = self.batch
        batch.step = step = batch.step + steps
        batch.context += steps * len(batch.decoding)
        ends = batch.ends
        while ends and ends[0][0] <= step:
            request = heappop(ends)[1]
            batch.take_out(request)
            self._residents -= 1
            del self.present[request]
            self.world.last_token(request, now)

    def _join_members(self, now: float) -> None:
        world, size, decode_at = self.world, self._block_tokens, self.world.records.decode_at
        for request in self._filled:
            context = world.context[request]
            if decode_at[request] > now:
                decode_at[request] = now
            self.room += context // size + 1
            self.batch.put_in(request, context + 1, world.left[request])
        self._filled.clear()
        if self.joining:
            self._join_computed(now)

    def _join_computed(self, now: float) -> None:
        decode_at = self.world.records.decode_at
        for member in self.joining:
            if member.tokens - member.computed > 1 or member.computed == 0:
                self._walked.uncomputed[member.request] = member
            else:
                decode_at[member.request] = min(decode_at[member.request], now)
                self.put_in(member)
        self.joining.clear()

    def put_in(self, member: Member) -> None:
        """It decodes from the next step on."""
        self.room += member.blocks
        self.batch.put_in(member.request, member.tokens, self.world.left[member.request])
