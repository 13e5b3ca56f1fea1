import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kv.layout import Run, blocks_for, lie_within, runs
from shared.specs.ids import BlockId


def ids(*blocks: int) -> list[BlockId]:
    return [BlockId(block) for block in blocks]


def test_a_partly_filled_block_counts_as_one():
    assert [blocks_for(tokens, 16) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_blocks_that_follow_each_other_on_both_sides_travel_together():
    moved = runs(ids(4, 5, 6, 9), ids(0, 1, 7, 8), most_blocks=8)
    assert moved == [Run(BlockId(4), BlockId(0), 2), Run(BlockId(6), BlockId(7), 1), Run(BlockId(9), BlockId(8), 1)]


def test_a_run_is_cut_at_the_largest_message():
    assert [run.count for run in runs(ids(0, 1, 2, 3, 4), ids(5, 6, 7, 8, 9), most_blocks=2)] == [2, 2, 1]


@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(1, 5))
def test_runs_move_every_block_to_its_place_once(source: list[int], target: list[int], most: int):
    pieces = runs(ids(*source), ids(*target), most)
    moved = [(piece.source + i, piece.target + i) for piece in pieces for i in range(piece.count)]
    assert moved == list(zip(source, target, strict=True))
    assert all(piece.count <= most for piece in pieces)


def test_runs_of_held_blocks_lie_within_them_in_any_order():
    held = ids(4, 5, 6, 9)
    assert lie_within([(BlockId(9), 1), (BlockId(4), 3)], held)
    assert lie_within([(BlockId(5), 2)], held)


@pytest.mark.parametrize(
    "forged",
    [
        [],
        [(4, 0)],
        [(4, -1)],
        [(4, 2), (6, -1), (6, 1)],
        [(7, 1)],
        [(-1, 1)],
        [(5, 3)],
        [(0, 2**62)],
        [(4, 2**62), (4, -(2**62))],
        [(4, 1)] * 5,
    ],
)
def test_runs_that_no_holder_would_ask_for_are_seen_before_they_are_spelled_out(forged: list[tuple[int, int]]):
    assert not lie_within([(BlockId(first), count) for first, count in forged], ids(4, 5, 6, 9))
