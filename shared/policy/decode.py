"""What a decode instance runs next: whom to admit, step, and give up when blocks run out (paper section 4.3)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from shared.kv.layout import blocks_for

Order = Literal["prefill_priority", "chunked"]


class Member(Protocol):
    """A sequence that owns blocks here, in order of admission."""

    @property
    def tokens(self) -> int:
        """All known tokens: context and generated."""
        ...

    @property
    def computed(self) -> int:
        """Tokens whose KV is in the blocks. A decoding sequence lacks exactly its last one."""
        ...

    @property
    def blocks(self) -> int: ...


class StepPlan(NamedTuple):
    pieces: list[tuple[int, int]]  # (index of the member, new tokens to compute for it)
    preempt: list[int]  # members to give up first: resubmitted with what they have, never dropped


def admissible(context_tokens: int, block_tokens: int, free_blocks: int, members: int, max_batch: int) -> bool:
    """Whether the next request may reserve its blocks.

    It needs its context and the token that follows. Each member here keeps a claim on one more block, so that an
    admission is not paid for by a preemption a few steps later.
    """
    return members < max_batch and context_tokens // block_tokens + 1 + members <= free_blocks


class Whole(NamedTuple):
    """A step in which nobody that could take part is left out."""

    decoding: bool  # every decoding member takes its next token
    chunks: Sequence[tuple[int, int]]  # (index among all members, new tokens) of contexts that are not computed yet


EVERYBODY_DECODES = Whole(True, ())


def can_decode(needed_blocks: int, free_blocks: int) -> bool:
    """Whether every decoding member can take its next token.

    Without uncomputed contexts that is all of the next step. It stays the same until a member joins or ends or blocks
    run short: the simulator jumps there.
    """
    return needed_blocks <= free_blocks


def plan_whole(
    uncomputed: Sequence[tuple[int, int]],
    decoding: int,
    needed_blocks: int,
    free_blocks: int,
    order: Order,
    prefill_tokens: int,
) -> Whole | None:
    """The next step from sums alone. None: blocks are short, and `plan_step` must see who waits or leaves.

    uncomputed: (index among all members, tokens to compute) in order of admission.  decoding: how many others there
    are.  needed_blocks: that these want for their next token.
    """
    if uncomputed and order == "prefill_priority":
        return Whole(False, _packed(uncomputed, prefill_tokens))
    if not can_decode(needed_blocks, free_blocks):
        return None
    if not uncomputed:
        return EVERYBODY_DECODES
    return Whole(True, _chunks(uncomputed, max(1, prefill_tokens - decoding)))


def plan_step(
    members: Sequence[Member], order: Order, block_tokens: int, free_blocks: int, prefill_tokens: int
) -> StepPlan:
    """The next batch: iteration-level, all that can run.

    `prefill_priority`: contexts that are not computed yet go first and alone, packed up to `prefill_tokens`, a longer
    one by itself. `chunked`: every decoding member takes one token, the rest of `prefill_tokens` goes to the oldest
    uncomputed contexts (Sarathi). Without uncomputed contexts both are plain continuous batching.
    """
    uncomputed = [(i, m.tokens - m.computed) for i, m in enumerate(members) if m.tokens - m.computed > 1]
    needs = [max(0, blocks_for(m.tokens, block_tokens) - m.blocks) for m in members]
    decoders = len(members) - len(uncomputed)
    whole = plan_whole(uncomputed, decoders, sum(needs), free_blocks, order, prefill_tokens)
    if whole is not None:
        everybody = [(i, 1) for i, m in enumerate(members) if m.tokens - m.computed == 1] if whole.decoding else []
        return StepPlan([*everybody, *whole.chunks], [])
    preempt = _preemptions(members, needs, free_blocks)
    free_blocks += sum(members[i].blocks for i in preempt)
    decoding: list[tuple[int, int]] = []
    for index, member in enumerate(members):
        # One that cannot grow even now waits: the blocks are with requests whose KV is still on its way.
        if index not in preempt and member.tokens - member.computed == 1 and needs[index] <= free_blocks:
            decoding.append((index, 1))
            free_blocks -= needs[index]
    chunks = _chunks([u for u in uncomputed if u[0] not in preempt], max(1, prefill_tokens - len(decoding)))
    return StepPlan(decoding + chunks, preempt)


def _preemptions(members: Sequence[Member], needs: list[int], free_blocks: int) -> list[int]:
    """The youngest members, as many as must leave until every other one can write its next token."""
    wanted = sum(needs)
    leaving: list[int] = []
    for index in range(len(members) - 1, 0, -1):
        if wanted <= free_blocks:
            break
        leaving.append(index)
        wanted -= needs[index]
        free_blocks += members[index].blocks
    return leaving


def _packed(uncomputed: Sequence[tuple[int, int]], most_tokens: int) -> list[tuple[int, int]]:
    batch = list(uncomputed[:1])
    for index, tokens in uncomputed[1:]:
        if sum(count for _, count in batch) + tokens > most_tokens:
            break
        batch.append((index, tokens))
    return batch


def _chunks(uncomputed: Sequence[tuple[int, int]], budget: int) -> list[tuple[int, int]]:
    chunks = []
    for index, tokens in uncomputed:
        if budget <= 0:
            break
        chunks.append((index, min(tokens, budget)))
        budget -= tokens
    return chunks
