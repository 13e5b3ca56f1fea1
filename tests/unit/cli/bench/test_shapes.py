"""Ways to use devices, and how two of them compare."""

import pytest

from cli.bench.shapes import Shape, ratio, shapes_of
from services.scheduler.simulator.placement import parse_placement


def test_every_split_is_there_once_and_uses_all_devices():
    assert shapes_of(4) == [Shape(0, 4), Shape(1, 3), Shape(2, 2), Shape(3, 1)]
    assert shapes_of(1) == [Shape(0, 1)]
    for shape in shapes_of(5):
        assert shape.devices == parse_placement(shape.placement).gpus == 5


def test_a_shape_is_what_up_is_told():
    assert Shape(0, 2).options == ("--colocated", "--decode", "2")
    assert Shape(2, 1).options == ("--prefill", "2", "--decode", "1")


def test_the_ratio_is_taken_round_by_round():
    """Rounds differ by a factor of 10, the two shapes hardly: pairs keep that apart."""
    found = ratio([2.0, 21.0, 205.0], [1.0, 10.0, 100.0])
    assert found is not None
    mean, interval = found
    assert mean == pytest.approx(2.05, rel=0.01)
    assert interval is not None
    assert 1.9 < interval[0] < mean < interval[1] < 2.2


def test_a_ratio_without_an_interval_or_none_at_all():
    assert ratio([2.0], [1.0]) == (2.0, None)
    assert ratio([0.0, 2.0], [1.0, 1.0]) == (1.0, None)
    assert ratio([1.0, 2.0], [1.0, 0.0]) is None
