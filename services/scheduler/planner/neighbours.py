"""The placements beside one: those that differ from it in a single number, by a step."""

from collections.abc import Iterator
from dataclasses import replace

from services.scheduler.planner.candidates import Cluster, Shape, fits_nodes, fits_segments
from services.scheduler.simulator.placement import Group, Placement


def neighbours(one: Placement, possible: list[Shape], cluster: Cluster, *, across_nodes: bool) -> list[Placement]:
    """Those of `possible` shapes that the cluster has room for. Of colocated instances one is asked as good as many."""
    if one.prefill is None:
        groups = (group for group in _beside(one.decode, possible) if group.count == one.decode.count)
        return [Placement(None, group) for group in groups if group.tp * group.pp <= cluster.gpus_per_node]
    fits = fits_nodes if across_nodes else fits_segments
    beside = [replace(one, prefill=group) for group in _beside(one.prefill, possible)]
    beside += [replace(one, decode=group) for group in _beside(one.decode, possible)]
    return [
        placement
        for placement in beside
        if (p := placement.prefill) is not None
        and fits(_shape(p), _shape(placement.decode), cluster, (p.count, placement.decode.count))
    ]


def differences(one: Placement, other: Placement) -> int:
    """How many numbers are not the same."""
    return sum(a != b for a, b in zip(_numbers(one), _numbers(other), strict=True))


def _beside(group: Group, possible: list[Shape]) -> Iterator[Group]:
    if group.count > 1:
        yield replace(group, count=group.count - 1)
    yield replace(group, count=group.count + 1)
    for tp in _steps(group.tp, [shape.tp for shape in possible if shape.pp == group.pp]):
        yield replace(group, tp=tp)
    for pp in _steps(group.pp, [shape.pp for shape in possible if shape.tp == group.tp]):
        yield replace(group, pp=pp)


def _steps(number: int, others: list[int]) -> list[int]:
    """The next one below and the next one above."""
    below, above = [n for n in others if n < number], [n for n in others if n > number]
    return ([max(below)] if below else []) + ([min(above)] if above else [])


def _shape(group: Group) -> Shape:
    return Shape(group.tp, group.pp)


def _numbers(placement: Placement) -> tuple[int, ...]:
    group, decode = placement.prefill or Group(0, 0, 0), placement.decode
    return (group.count, group.tp, group.pp, decode.count, decode.tp, decode.pp)
