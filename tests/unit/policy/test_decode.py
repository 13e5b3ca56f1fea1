from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from shared.policy.decode import admissible, plan_step


@dataclass
class Member:
    tokens: int
    computed: int
    blocks: int


def decoding(tokens: int, blocks: int) -> Member:
    return Member(tokens, tokens - 1, blocks)


def waiting(tokens: int, computed: int = 0) -> Member:
    return Member(tokens, computed, -(-(tokens + 1) // 4))


def test_every_decoding_sequence_takes_one_token_a_step():
    plan = plan_step([decoding(5, 2), decoding(9, 3)], "prefill_priority", 4, 0, 64)
    assert plan.pieces == [(0, 1), (1, 1)]
    assert plan.preempt == []


def test_the_youngest_leaves_when_the_oldest_needs_a_block_and_none_is_free():
    plan = plan_step([decoding(5, 1), decoding(4, 1), decoding(3, 1)], "prefill_priority", 4, 0, 64)
    assert plan.preempt == [2]
    assert plan.pieces == [(0, 1), (1, 1)]


def test_the_oldest_is_never_given_up_and_waits_for_blocks_that_are_on_their_way():
    plan = plan_step([decoding(5, 1)], "prefill_priority", 4, 0, 64)
    assert plan == ([], [])


def test_prefill_priority_computes_contexts_first_and_alone():
    plan = plan_step([decoding(5, 2), waiting(30), waiting(30), waiting(30)], "prefill_priority", 4, 50, 64)
    assert plan.pieces == [(1, 30), (2, 30)]


def test_chunked_prefill_lets_everybody_decode_and_gives_the_rest_to_the_oldest_context():
    plan = plan_step([decoding(5, 2), waiting(100, 40), waiting(30)], "chunked", 4, 50, 64)
    assert plan.pieces == [(0, 1), (1, 60), (2, 3)]


def test_admission_keeps_a_block_for_everyone_who_is_here():
    assert admissible(16, block_tokens=4, free_blocks=7, members=2, max_batch=8)
    assert not admissible(16, block_tokens=4, free_blocks=6, members=2, max_batch=8)


def test_an_empty_instance_admits_whatever_fits():
    assert admissible(15, block_tokens=4, free_blocks=4, members=0, max_batch=1)


def test_a_full_batch_admits_nobody():
    assert not admissible(1, block_tokens=4, free_blocks=99, members=8, max_batch=8)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(0, 6),
    st.sampled_from(["prefill_priority", "chunked"]),
)
def test_a_plan_never_writes_beyond_the_blocks_that_there_are(shapes, free, order):
    members = [decoding(t, max(1, -(-t // 4) - (extra == 0))) if extra < 2 else waiting(t + 2) for t, extra in shapes]
    plan = plan_step(members, order, 4, free, 16)
    chosen = [index for index, _ in plan.pieces]
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(plan.preempt)
    growth = sum(max(0, -(-(members[i].computed + n) // 4) - members[i].blocks) for i, n in plan.pieces)
    assert growth <= free + sum(members[i].blocks for i in plan.preempt)
    assert all(n <= members[i].tokens - members[i].computed for i, n in plan.pieces)
    assert 0 not in plan.preempt
