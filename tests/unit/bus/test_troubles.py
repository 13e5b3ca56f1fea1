from typing import get_args

from shared.bus.troubles import Trouble, Troubles


def test_every_kind_of_trouble_is_reported_from_the_start_so_that_the_first_is_a_rise():
    troubles = Troubles()
    before = dict(troubles.counts)
    assert len(before) == len(get_args(Trouble))
    assert set(before.values()) == {0}
    troubles.note("bus_permission_violation", PermissionError("on purpose"))
    assert dict(troubles.counts) == before | {"bus_permission_violation": 1}
