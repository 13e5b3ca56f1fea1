"""The way from one layout to another: pure decisions."""

import itertools

import pytest

from cli.changeover import Engine, Start, Stop, changeover


def layout(prefill: int, decode: int, gpus: tuple[str, ...] = ()) -> list[Engine]:
    names = [("decode", n) for n in range(1, decode + 1)] + [("prefill", n) for n in range(1, prefill + 1)]
    seen = itertools.cycle(gpus or ("",))
    return [Engine(role, number, next(seen)) for role, number in names]  # pyright: ignore[reportArgumentType]


def test_on_a_cpu_the_new_instance_is_there_before_the_old_one_goes():
    assert changeover(layout(1, 2), 2, 1, gpus=()) == [Start(Engine("prefill", 2)), Stop(Engine("decode", 2))]
    assert changeover(layout(2, 1), 1, 2, gpus=()) == [Start(Engine("decode", 2)), Stop(Engine("prefill", 2))]


def test_where_each_gpu_is_an_instances_own_the_old_one_makes_room_first():
    gpus = ("a", "b", "c")
    assert changeover(layout(1, 2, gpus), 2, 1, gpus) == [
        Stop(Engine("decode", 2, "b")),
        Start(Engine("prefill", 2, "b")),
    ]


def test_a_gpu_that_nobody_has_is_taken_before_anybody_goes():
    assert changeover(layout(1, 2, ("a", "b", "c")), 2, 1, ("a", "b", "c", "d")) == [
        Start(Engine("prefill", 2, "d")),
        Stop(Engine("decode", 2, "b")),
    ]


def test_nothing_is_done_where_nothing_changes():
    assert changeover(layout(2, 3), 2, 3, gpus=()) == []


def test_a_name_that_runs_is_not_given_again():
    running = [Engine("prefill", 3), Engine("decode", 1), Engine("decode", 2)]
    assert changeover(running, 2, 1, gpus=()) == [Start(Engine("prefill", 4)), Stop(Engine("decode", 2))]


@pytest.mark.parametrize("gpus", [(), ("a", "b", "c", "d"), ("a", "b", "c", "d", "e", "f"), ("a",)])
def test_no_role_is_ever_without_an_instance_on_any_way(gpus: tuple[str, ...]):
    layouts = [(n, m) for n in range(1, 4) for m in range(1, 4)]
    for before, after in itertools.product(layouts, layouts):
        running = layout(*before, gpus)
        for step in changeover(running, *after, gpus):
            if isinstance(step, Start):
                assert step.engine.name not in {engine.name for engine in running}
                running.append(step.engine)
            else:
                running.remove(step.engine)
            assert {engine.role for engine in running} == {"prefill", "decode"}
        assert tuple(sum(engine.role == role for engine in running) for role in ("prefill", "decode")) == after
