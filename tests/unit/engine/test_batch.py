import numpy as np
import pytest

from shared.engine.batch import SPARE_BLOCKS, Span, group_singles, lay_out, padded_tables
from shared.engine.pieces import Piece


def piece(tokens: list[int], start: int, blocks: list[int]) -> Piece:
    return Piece(tokens, start, blocks, None)


def single(blocks: int) -> Span:
    return Span(0, 0, 1, blocks * 16 - 1, np.arange(blocks))


def test_single_tokens_come_first_by_rising_context_then_prompts_in_order():
    pieces = [piece([1, 2, 3], 0, [9]), piece([4], 40, [0, 1, 2]), piece([5], 7, [3]), piece([6, 7], 2, [4])]
    batch = lay_out(pieces, 16)
    assert [span.piece for span in batch.spans] == [2, 1, 0, 3]
    assert [span.first_row for span in batch.spans] == [0, 1, 2, 5]
    assert batch.tokens.tolist() == [5, 4, 1, 2, 3, 6, 7]
    assert batch.positions.tolist() == [7, 40, 0, 1, 2, 2, 3]
    assert batch.singles == 2


def test_every_token_goes_to_its_place_in_its_sequences_blocks():
    batch = lay_out([piece(list(range(6)), 3, [7, 2, 5])], 4)
    places = list(zip(batch.block_ids.tolist(), batch.offsets.tolist(), strict=True))
    assert places == [(7, 3), (2, 0), (2, 1), (2, 2), (2, 3), (5, 0)]


def test_tables_leave_out_blocks_reserved_for_later_tokens():
    assert lay_out([piece([1], 4, [7, 2, 5, 6])], 4).spans[0].blocks.tolist() == [7, 2]


@pytest.mark.parametrize(
    ("tokens", "start", "stale"),
    [(1, 0, [7]), (1, 1, []), (1, 4, [2]), (4, 0, []), (5, 0, [2]), (6, 3, [5]), (5, 3, [])],
)
def test_a_block_begun_and_not_filled_is_to_be_cleared(tokens: int, start: int, stale: list[int]):
    assert lay_out([piece([0] * tokens, start, [7, 2, 5])], 4).stale.tolist() == stale


def test_too_few_blocks_for_the_tokens_is_a_fault_of_ours():
    with pytest.raises(AssertionError, match="5 tokens in 1 blocks"):
        lay_out([piece([1], 4, [7])], 4)


def test_contexts_of_similar_length_share_a_group():
    groups = group_singles([single(1), single(2), single(3), single(2 + SPARE_BLOCKS)], 1000)
    assert [len(group) for group in groups] == [4]


def test_a_much_longer_context_gets_a_group_of_its_own():
    groups = group_singles([single(1), single(3 + SPARE_BLOCKS), single(4 + SPARE_BLOCKS)], 1000)
    assert [len(group) for group in groups] == [1, 2]


def test_a_group_of_several_keeps_to_the_most_blocks_with_its_padding():
    groups = group_singles([single(2), single(3), single(3), single(9)], 9)
    assert [len(group) for group in groups] == [3, 1]
    assert [len(group) for group in group_singles([single(20)] * 2, 9)] == [1, 1]


def test_no_singles_make_no_group():
    assert group_singles([], 1000) == []


def test_short_tables_are_filled_up_with_their_own_first_block():
    spans = [Span(0, 0, 1, 16, np.array([4, 5])), Span(1, 1, 1, 40, np.array([6, 7, 8]))]
    assert padded_tables(spans).tolist() == [[4, 5, 4], [6, 7, 8]]
