import pytest

from services.scheduler.simulator.placement import BadPlacement, Group, Placement, parse_placement


@pytest.mark.parametrize(
    ("text", "placement", "gpus"),
    [
        ("2x tp2,pp1 + 1x tp1,pp1", Placement(Group(2, 2, 1), Group(1, 1, 1)), 5),
        ("tp4 + tp2,pp2", Placement(Group(1, 4, 1), Group(1, 2, 2)), 8),
        ("2x tp1,pp1 colocated", Placement(None, Group(2, 1, 1)), 2),
    ],
)
def test_a_placement_is_read_and_written_back(text: str, placement: Placement, gpus: int):
    assert parse_placement(text) == placement
    assert parse_placement(str(placement)) == placement
    assert placement.gpus == gpus


@pytest.mark.parametrize(
    "text", ["", "tp2", "tp1 + tp1 + tp1", "0x tp1 + tp1", "tp1 + pp2", "two tp1 colocated", "9999x tp1 + tp1"]
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(BadPlacement):
        parse_placement(text)
