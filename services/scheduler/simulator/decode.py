"""A decode instance in virtual time. Whom it admits and what it steps is decided by `shared.policy.decode`.

While the batch stays the same its steps are not walked through: k steps of B requests with S tokens of context take
k * (fixed + each * S) + each * B * k * (k - 1) / 2 seconds. Blocks grow in a pattern that repeats every `block_tokens`
steps, so that sums are enough here as well.
"""

import math
from collections import deque
from heapq import heappop, heappush

from services.scheduler.simulator.latency import Latency
from services.scheduler.simulator.prefill import PrefillInstance
from services.scheduler.simulator.world import World
from shared.kv.layout import blocks_for
from shared.messages.instances import Capacity, Load
from shared.policy.decode import Order, Whole, admissible, plan_step, plan_whole
from shared.specs.ids import InstanceId


class Member:
    """A sequence that owns blocks here. While it decodes, `tokens` counts from the instance's step counter."""

    __slots__ = ("blocks", "computed", "request", "tokens")

    def __init__(self, request: int, tokens: int, computed: int, blocks: int) -> None:
        self.request, self.tokens, self.computed, self.blocks = request, tokens, computed, blocks


class DecodeInstance:
    """Queue, transfers, members and KV blocks."""

    def __init__(
        self, world: World, name: InstanceId, latency: Latency, capacity: Capacity, order: Order, prefill_tokens: int
    ) -> None:
        self._world, self.id, self._latency, self.capacity = world, name, latency, capacity
        self._order: Order = order
        self._prefill_tokens, self._block_tokens = prefill_tokens, capacity.block_tokens
        self._queue: deque[tuple[int, PrefillInstance | None]] = deque()
        self._filling: dict[int, PrefillInstance] = {}
        self._joining: list[Member] = []  # members from the next step on
        self._decoding: dict[int, tuple[int, int]] = {}  # request -> (step at which it joined, tokens it had then)
        self._uncomputed: dict[int, Member] = {}
        self._passing: dict[int, Member] = {}  # on their way through the later pipeline stages
        self._apart: list[Member] = []  # decoding members during a step for which blocks are short
        self._ends: list[tuple[int, int]] = []  # (step after which it has its last token, request)
        self._crossing = [0] * capacity.block_tokens  # members that need a block at step s: _crossing[s % block_tokens]
        self._context = 0  # tokens of all decoding members at step _step
        self._step = 0  # decode steps done
        self.free_blocks = capacity.blocks
        # The steps that are under way: from _since on, _planned of them; _grown have their blocks already.
        self._since, self._planned, self._grown = 0.0, 0, 0
        self._fixed, self._each = 0.0, 0.0  # of those steps
        self._until, self._run = 0.0, 0  # their end; counts runs: an older run's end means nothing
        self._stepping = False
        self.link_free_at = 0.0
        self.busy_seconds = 0.0

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    def start(self, request: int, source: PrefillInstance | None, now: float) -> None:
        self._queue.append((request, source))
        self._admit(now)
        if not self._stepping and self._joining:
            self._next(now)

    def load(self) -> Load:
        context = self._world.context
        queued = [request for request, _ in self._queue] + list(self._filling)
        return Load(
            queued_requests=len(queued),
            queued_tokens=sum(context[request] for request in queued),
            running=self.members,
            free_blocks=self.free_blocks,
        )

    def requests(self) -> list[int]:
        waiting = [request for request, _ in self._queue]
        joining = [member.request for member in (*self._joining, *self._apart)]
        return [*waiting, *self._filling, *joining, *self._uncomputed, *self._passing, *self._decoding]

    @property
    def members(self) -> int:
        decoding = len(self._decoding) + len(self._apart)
        return decoding + len(self._uncomputed) + len(self._passing) + len(self._joining)

    # -- admission ----------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """From the head of the queue while there is room, as `Intake.run` does."""
        if not self._queue:
            return
        self._grow_until(now)
        while self._queue:
            request, source = self._queue[0]
            context = self._world.context[request]
            members = self.members + len(self._filling)
            fits = admissible(context, self._block_tokens, self.free_blocks, members, self.capacity.max_batch)
            if not fits:
                return
            self._queue.popleft()
            blocks = blocks_for(context + 1, self._block_tokens)
            self.free_blocks -= blocks
            if source is None:
                self._joining.append(Member(request, context, 0, blocks))
                self._cut_short(now)
                continue
            self._filling[request] = source
            begin = max(now, self.link_free_at, source.link_free_at)
            end = begin + self._world.transfer_seconds(context)
            self.link_free_at = source.link_free_at = end
            self._world.records.moved_from[request] = begin
            self._world.at(end, self._filled, request)
            if self._stepping and self._run_needs() > self.free_blocks:
                self._cut_short(now)

    def _filled(self, now: float, request: int) -> None:
        self._world.records.moved_at[request] = now
        self._filling.pop(request).release(request, now)
        context = self._world.context[request]
        blocks = blocks_for(context + 1, self._block_tokens)
        self._joining.append(Member(request, context + 1, context, blocks))
        if self._stepping:
            self._cut_short(now)
        else:
            self._next(now)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _seconds(self, steps: int) -> float:
        """Of the first `steps` of the steps under way."""
        return steps * self._fixed + self._each * steps * (steps - 1) / 2

    def _next(self, now: float) -> None:
        """Between two steps: plan the next ones and begin them."""
        self._join_members(now)
        decoding, uncomputed = len(self._decoding), list(self._uncomputed.values())
        if not decoding and not uncomputed:
            self._stepping = False
            return
        lacking = [(decoding + i, m.tokens - m.computed) for i, m in enumerate(uncomputed)]
        needed = self._crossing[self._step % self._block_tokens]
        whole = plan_whole(lacking, decoding, needed, self.free_blocks, self._order, self._prefill_tokens)
        self._stepping = True
        if whole is None or whole.chunks:
            self._one_step(now, uncomputed, whole)
            return
        fixed, each = self._latency.decode(decoding)
        self._fixed, self._each = fixed + each * self._context, each * decoding
        self._since, self._grown = now, 0
        self._planned = self._steps_with_room(self._ends[0][0] - self._step)
        self._until = now + self._seconds(self._planned)
        self._run += 1
        self._world.at(self._until, self._run_ended, self._run)

    def _steps_with_room(self, steps: int) -> int:
        """The most of `steps` that the free blocks suffice for. At least 1."""
        if len(self._decoding) * (steps // self._block_tokens + 1) <= self.free_blocks:
            return steps
        while steps > 1 and self._growth(0, steps) > self.free_blocks:
            steps = min(steps - 1, max(1, steps // 2)) if self._growth(0, steps // 2) > self.free_blocks else steps - 1
        return steps

    def _growth(self, first: int, last: int) -> int:
        """Blocks that the steps first..last-1 of those under way take."""
        crossing, size = self._crossing, self._block_tokens
        rounds, rest = divmod(last - first, size)
        begin = (self._step + first) % size
        taken = rounds * len(self._decoding)
        if rest:
            end = begin + rest
            taken += sum(crossing[begin:end]) if end <= size else sum(crossing[begin:]) + sum(crossing[: end - size])
        return taken

    def _run_needs(self) -> int:
        return self._growth(self._grown, self._planned) if self._planned else 0

    def _steps_begun(self, now: float) -> int:
        """How many of the steps under way have begun by now, the one in progress included. At least 1."""
        passed = now - self._since
        half = self._each / 2
        linear = self._fixed - half
        root = (
            passed / self._fixed
            if half == 0
            else (math.sqrt(linear * linear + 4 * half * passed) - linear) / (2 * half)
        )
        steps = max(1, math.ceil(root))
        while steps > 1 and self._seconds(steps - 1) >= passed:
            steps -= 1
        while self._seconds(steps) < passed:
            steps += 1
        return min(steps, self._planned)

    def _grow_until(self, now: float) -> None:
        """Take the blocks of every step that has begun."""
        if not self._stepping or not self._planned:
            return
        begun = self._steps_begun(now)
        if begun > self._grown:
            self.free_blocks -= self._growth(self._grown, begun)
            self._grown = begun

    def _cut_short(self, now: float) -> None:
        """The batch changes: the steps under way end with the one in progress."""
        if not self._planned:
            return  # a single planned step: it ends by itself
        begun = self._steps_begun(now)
        if begun < self._planned:
            self._planned = begun
            self._until = self._since + self._seconds(begun)
            self._run += 1
            self._world.at(self._until, self._run_ended, self._run)

    def _run_ended(self, now: float, run: int) -> None:
        if run != self._run:
            return
        steps = self._planned
        self.free_blocks -= self._growth(self._grown, steps)
        self._step += steps
        self._context += steps * len(self._decoding)
        self.busy_seconds += now - self._since
        self._planned = 0
        self._finish_members(now)
        self._admit(now)
        self._next(now)

    def _finish_members(self, now: float) -> None:
        ends, step = self._ends, self._step
        while ends and ends[0][0] <= step:
            request = heappop(ends)[1]
            member = self._take_out(request)
            self.free_blocks += member.blocks
            self._world.last_token(request, now)

    def _take_out(self, request: int) -> Member:
        """A decoding member as it is now; it decodes no more."""
        joined, tokens_then = self._decoding.pop(request)
        self._crossing[(joined - tokens_then + 1) % self._block_tokens] -= 1
        tokens = tokens_then + self._step - joined
        self._context -= tokens
        self._world.left[request] -= self._step - joined
        return Member(request, tokens, tokens - 1, blocks_for(tokens - 1, self._block_tokens))

    def _put_in(self, member: Member) -> None:
        """It decodes from the next step on. A block for its next token is taken when that step begins, not before."""
        request = member.request
        self._decoding[request] = (self._step, member.tokens)
        self._crossing[(self._step - member.tokens + 1) % self._block_tokens] += 1
        self.free_blocks += member.blocks - blocks_for(member.tokens - 1, self._block_tokens)
        self._context += member.tokens
        heappush(self._ends, (self._step + self._world.left[request], request))

    def _join_members(self, now: float) -> None:
        decode_at = self._world.records.decode_at
        for member in self._joining:
            if member.tokens - member.computed > 1 or member.computed == 0:
                self._uncomputed[member.request] = member
            else:
                if decode_at[member.request] > now:
                    decode_at[member.request] = now
                self._put_in(member)
        self._joining.clear()

    # -- a step with contexts in it, or short of blocks ---------------------------------------------------------------

    def _one_step(self, now: float, uncomputed: list[Member], whole: Whole | None) -> None:
        decoding = len(self._decoding)
        if whole is None:
            self._short_step(now)
            return
        chunks = [(uncomputed[index - decoding], count) for index, count in whole.chunks]
        if whole.decoding:
            self.free_blocks -= self._crossing[self._step % self._block_tokens]
            seconds = self._latency.mixed(decoding, self._context, [(m.computed, count) for m, count in chunks])
        else:
            sizes = [count for _, count in chunks]
            first, later = self._latency.prefill_stages(sum(sizes), sum(count * count for count in sizes))
            seconds = first  # of the first stage: then the next step may begin
            behind = (self._latency.pp - 1) * (later + self._latency.send)
            if behind:
                self._begin_chunks(now, chunks)
                for member, _ in chunks:
                    self._passing[member.request] = self._uncomputed.pop(member.request)
                self._world.at(now + seconds + behind, self._passed, [member for member, _ in chunks])
                self._world.at(now + seconds, self._step_ended, ([], False, seconds))
                return
        self._begin_chunks(now, chunks)
        self._world.at(now + seconds, self._step_ended, (chunks, whole.decoding, seconds))

    def _passed(self, now: float, members: list[Member]) -> None:
        """Whole contexts have left the last pipeline stage."""
        for member in members:
            del self._passing[member.request]
            if self._world.first_token_here(member.request, now):
                member.tokens, member.computed = member.tokens + 1, member.tokens
                self._joining.append(member)
            else:
                self.free_blocks += member.blocks
        if self._stepping:
            self._cut_short(now)
        else:
            self._admit(now)
            self._next(now)

    def _step_ended(self, now: float, step: tuple[list[tuple[Member, int]], bool, float]) -> None:
        chunks, decoded, seconds = step
        self.busy_seconds += seconds
        if decoded:
            self._step += 1
            self._context += len(self._decoding)
            self._finish_members(now)
        self._end_chunks(now, chunks)
        self._admit(now)
        self._next(now)

    def _begin_chunks(self, now: float, chunks: list[tuple[Member, int]]) -> None:
        prefill_at = self._world.records.prefill_at
        for member, _ in chunks:
            if prefill_at[member.request] > now:
                prefill_at[member.request] = now

    def _end_chunks(self, now: float, chunks: list[tuple[Member, int]]) -> None:
        decode_at = self._world.records.decode_at
        for member, count in chunks:
            member.computed += count
            if member.computed < member.tokens:
                continue
            del self._uncomputed[member.request]
            if self._world.first_token_here(member.request, now):
                member.tokens += 1
                decode_at[member.request] = min(decode_at[member.request], now)
                self._put_in(member)
            else:
                self.free_blocks += member.blocks

    def _short_step(self, now: float) -> None:
        """Blocks are short: every member is looked at, some leave or wait."""
        self._apart = [self._take_out(request) for request in list(self._decoding)]
        self._ends.clear()
        members = self._apart + list(self._uncomputed.values())
        plan = plan_step(members, self._order, self._block_tokens, self.free_blocks, self._prefill_tokens)
        pieces = [(members[index], count) for index, count in plan.pieces]
        for index in plan.preempt:
            self._preempt(members[index], now)
        chunks = [(m, count) for m, count in pieces if m.request in self._uncomputed]
        steppers = [m for m, _ in pieces if m.request not in self._uncomputed]
        for member in steppers:
            grown = blocks_for(member.tokens, self._block_tokens)
            self.free_blocks -= grown - member.blocks
            member.blocks = grown
        if not pieces:
            self._put_back()
            self._stepping = False
            return
        context = sum(member.tokens for member in steppers)
        if chunks:
            self._begin_chunks(now, chunks)
            seconds = self._latency.mixed(len(steppers), context, [(m.computed, count) for m, count in chunks])
        else:
            fixed, each = self._latency.decode(len(steppers))
            seconds = fixed + each * context
        self._world.at(now + seconds, self._short_step_ended, (steppers, chunks, seconds))

    def _short_step_ended(self, now: float, step: tuple[list[Member], list[tuple[Member, int]], float]) -> None:
        steppers, chunks, seconds = step
        self.busy_seconds += seconds
        left = self._world.left
        for member in steppers:
            member.tokens, member.computed = member.tokens + 1, member.computed + 1
            left[member.request] -= 1
            if not left[member.request]:
                self._apart.remove(member)
                self.free_blocks += member.blocks
                self._world.last_token(member.request, now)
        self._put_back()
        self._end_chunks(now, chunks)
        self._admit(now)
        self._next(now)

    def _put_back(self) -> None:
        for member in self._apart:
            self._put_in(member)
        self._apart = []

    def _preempt(self, member: Member, now: float) -> None:
        if member in self._apart:
            self._apart.remove(member)
        else:
            del self._uncomputed[member.request]
        self.free_blocks += member.blocks
        self._world.preempted(member.request, now)
