import pytest

from shared.engine.decode_graphs import batch_sizes


@pytest.mark.parametrize("most", [1, 3, 8, 63, 64, 100, 256, 1000])
def test_every_batch_finds_a_captured_size_that_is_not_much_larger(most: int):
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        size = next(size for size in sizes if size >= rows)
        assert size <= max(rows + 7, rows * 1.25 + 1)
