from hypothesis import given
from hypothesis import strategies as st

from shared.policy.prefill import next_prefill_batch


def batch(*tokens: int, limit: int = 512, free: int = 1000) -> int:
    return next_prefill_batch([(t, -(-t // 16)) for t in tokens], limit, free)


def test_short_prompts_are_packed_up_to_the_compute_bound_length():
    assert batch(200, 200, 112, 1) == 3


def test_a_prompt_longer_than_that_runs_alone():
    assert batch(2000, 10) == 1
    assert batch(10, 2000) == 1


def test_nobody_overtakes_a_prompt_that_does_not_fit_into_the_free_blocks():
    assert batch(160, 16, free=9) == 0


@given(st.lists(st.integers(1, 1500), max_size=12), st.integers(1, 1024), st.integers(0, 200))
def test_a_batch_is_a_prefix_within_both_limits_and_as_long_as_they_allow(tokens: list[int], limit: int, free: int):
    queue = [(t, -(-t // 16)) for t in tokens]
    count = next_prefill_batch(queue, limit, free)
    taken = queue[:count]
    assert sum(blocks for _, blocks in taken) <= free
    assert count <= 1 or sum(length for length, _ in taken) <= limit
    if count < len(queue):
        more = queue[: count + 1]
        assert sum(blocks for _, blocks in more) > free or (count > 0 and sum(length for length, _ in more) > limit)
