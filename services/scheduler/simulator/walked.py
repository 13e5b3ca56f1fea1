"""Steps that are walked through one by one: with contexts to compute in them, or short of blocks."""

from typing import TYPE_CHECKING

from services.scheduler.simulator.batch import Member
from shared.kv.layout import blocks_for
from shared.policy.decode import Whole, plan_step

if TYPE_CHECKING:
    from services.scheduler.simulator.decode import DecodeInstance

Chunks = list[tuple[Member, int]]


class Walked:
    """The part of a decode instance that looks at every member."""

    def __init__(self, instance: "DecodeInstance") -> None:
        self._instance, self._world = instance, instance.world
        self.uncomputed: dict[int, Member] = {}
        self.decoding = 0  # 1 while the batch takes part in a step here
        self._apart: list[Member] = []  # decoding members during a step for which blocks are short

    def begin(self, now: float, uncomputed: list[Member], whole: Whole) -> None:
        """A step in which nobody is left out."""
        instance, latency = self._instance, self._instance.latency
        decoding = len(instance.batch.decoding)
        chunks = [(uncomputed[index - decoding], count) for index, count in whole.chunks]
        self._note_begin(now, chunks)
        if whole.decoding:
            self.decoding = 1
            seconds = latency.mixed(decoding, instance.batch.context, [(m.computed, count) for m, count in chunks])
            self._world.at(now + seconds, self._ended, (chunks, True, seconds))
            return
        sizes = [count for _, count in chunks]
        first, later = latency.prefill_stages(sum(sizes), sum(count * count for count in sizes))
        behind = (latency.pp - 1) * (later + latency.send)
        if not behind:
            self._world.at(now + first, self._ended, (chunks, False, first))
            return
        for member, _ in chunks:  # once they have left the first stage the next step may begin
            del self.uncomputed[member.request]
        self._world.at(now + first + behind, self._passed, [member for member, _ in chunks])
        self._world.at(now + first, self._ended, ([], False, first))

    def begin_short(self, now: float) -> None:
        """Blocks are short: every member is looked at, some leave or wait."""
        instance = self._instance
        self._apart = [self._looked_at(request) for request in list(instance.batch.decoding)]
        instance.batch.ends.clear()
        members = self._apart + list(self.uncomputed.values())
        plan = plan_step(
            members, instance.order, instance.capacity.block_tokens, instance.room, instance.prefill_tokens
        )
        pieces = [(members[index], count) for index, count in plan.pieces]
        for index in plan.preempt:
            self._preempt(members[index], now)
        chunks = [(m, count) for m, count in pieces if m.request in self.uncomputed]
        steppers = [m for m, _ in pieces if m.request not in self.uncomputed]
        for member in steppers:
            grown = blocks_for(member.tokens, instance.capacity.block_tokens)
            instance.room -= grown - member.blocks
            member.blocks = grown
        if not pieces:
            self._put_back()
            instance.stepping = False
            return
        context = sum(member.tokens for member in steppers)
        if chunks:
            self._note_begin(now, chunks)
            seconds = instance.latency.mixed(len(steppers), context, [(m.computed, count) for m, count in chunks])
        else:
            fixed, each = instance.latency.decode(len(steppers))
            seconds = fixed + each * context
        self._world.at(now + seconds, self._short_ended, (steppers, chunks, seconds))

    def _looked_at(self, request: int) -> Member:
        tokens, steps = self._instance.batch.take_out(request)
        self._world.left[request] -= steps
        blocks = blocks_for(tokens - 1, self._instance.capacity.block_tokens)
        self._instance.room -= blocks
        return Member(request, tokens, tokens - 1, blocks)

    def _put_back(self) -> None:
        for member in self._apart:
            self._instance.put_in(member)
        self._apart = []

    def _preempt(self, member: Member, now: float) -> None:
        if member in self._apart:
            self._apart.remove(member)
        else:
            del self.uncomputed[member.request]
        self._instance.let_go(member.request, member.blocks)
        self._world.preempted(member.request, now)

    def _ended(self, now: float, step: tuple[Chunks, bool, float]) -> None:
        chunks, decoded, seconds = step
        instance = self._instance
        instance.busy_seconds += seconds
        if decoded:
            self.decoding = 0
            instance.pass_steps(1, now)
        self._end_chunks(now, chunks)
        instance.go_on(now)

    def _short_ended(self, now: float, step: tuple[list[Member], Chunks, float]) -> None:
        steppers, chunks, seconds = step
        self._instance.busy_seconds += seconds
        left = self._world.left
        for member in steppers:
            member.tokens, member.computed = member.tokens + 1, member.computed + 1
            left[member.request] -= 1
            if not left[member.request]:
                self._apart.remove(member)
                self._instance.let_go(member.request, member.blocks)
                self._world.last_token(member.request, now)
        self._put_back()
        self._end_chunks(now, chunks)
        self._instance.go_on(now)

    def _passed(self, now: float, members: list[Member]) -> None:
        """Whole contexts have left the last pipeline stage."""
        for member in members:
            if self._world.first_token(member.request, now):
                member.tokens, member.computed = member.tokens + 1, member.tokens
                self._instance.joining.append(member)
            else:
                self._instance.let_go(member.request, member.blocks)
                self._world.last_token(member.request, now)
        if self._instance.stepping:
            self._instance.cut_short(now)
        else:
            self._instance.go_on(now)

    def _note_begin(self, now: float, chunks: Chunks) -> None:
        prefill_at = self._world.records.prefill_at
        for member, _ in chunks:
            if prefill_at[member.request] > now:
                prefill_at[member.request] = now

    def _end_chunks(self, now: float, chunks: Chunks) -> None:
        decode_at = self._world.records.decode_at
        for member, count in chunks:
            member.computed += count
            if member.computed < member.tokens:
                continue
            del self.uncomputed[member.request]
            if self._world.first_token(member.request, now):
                member.tokens += 1
                decode_at[member.request] = min(decode_at[member.request], now)
                self._instance.put_in(member)
            else:
                self._instance.let_go(member.request, member.blocks)
                self._world.last_token(member.request, now)
