"""The planner's answer."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import pytest

from services.scheduler.planner.candidates import Cluster, Shape, fits_nodes, fits_segments, shapes
from services.scheduler.planner.goodput import Promise
from services.scheduler.planner.neighbours import differences, neighbours
from services.scheduler.planner.plan import make_plan
from services.scheduler.planner.search import Question
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import BadProfile, load_profile
from services.scheduler.simulator.workload import draw

PROFILE = load_profile("a100-80g-distserve")


class Here(Executor):
    """Runs everything in this process."""

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: Any = None, chunksize: int = 1
    ) -> Iterator[Any]:
        return map(fn, *iterables)


def _question(model: str = "opt-13b", gpus: int = 3, nodes: int = 1, **promise: float) -> Question:
    return Question(
        profile=PROFILE,
        model=PROFILE.model(model),
        cluster=Cluster(gpus, nodes),
        traces=(draw("fixed:512/64", 400, 1),),
        promise=Promise(**({"ttft": 0.4, "tpot": 0.04} | promise)),
        rate=20,
        across_nodes=False,
        link_gigabytes_per_second=600,
        tolerance=0.05,
    )


def test_a_plan_ranks_placements_and_says_what_binds():
    plan = make_plan(_question(), Here())
    confirmed = [row["per_gpu"] for row in plan["table"][:4]]
    assert plan["placement"] == plan["table"][0]["placement"]
    assert confirmed == sorted(confirmed, reverse=True)
    assert plan["binds"] in ("prefill compute", "decode step")
    assert plan["units"] * plan["table"][0]["goodput"] >= 20
    assert plan["instances"]["settings"]["DISTSERVE_PREFILL_BATCH_TOKENS"] > 512
    assert plan["colocated"].startswith("disaggregated is better")
    assert plan["impossible"]["tp3"] == "the profile has no figures for tensor parallelism 3"


def test_the_neighbours_of_the_best_are_looked_at_whatever_their_bound():
    question = _question(gpus=4)
    plan = make_plan(question, Here())
    possible, _ = shapes(PROFILE, question.model, question.cluster)
    best = parse_placement(plan["placement"])
    expected = {str(one) for one in neighbours(best, possible, question.cluster, across_nodes=False)}
    beside = {row["placement"]: row["per_gpu"] for row in plan["neighbours"]}
    assert expected
    assert expected <= set(beside)
    assert 0 < max(beside.values()) <= plan["table"][0]["per_gpu"]
    assert list(beside.values()) == sorted(beside.values(), reverse=True)


def test_neighbours_stay_within_the_cluster_and_the_shapes_that_can_be():
    possible = [Shape(1, 1), Shape(2, 1), Shape(4, 1), Shape(1, 2)]
    apart, together = parse_placement("2x tp2 + 1x tp1"), parse_placement("tp2 colocated")
    beside = [str(one) for one in neighbours(apart, possible, Cluster(6, 1), across_nodes=False)]
    assert "1x tp2,pp1 + 1x tp1,pp1" in beside
    assert "2x tp1,pp1 + 1x tp1,pp1" in beside
    assert "2x tp2,pp1 + 1x tp1,pp2" in beside
    assert "3x tp2,pp1 + 1x tp1,pp1" not in beside  # 7 GPUs
    assert "2x tp4,pp1 + 1x tp1,pp1" not in beside
    assert all(differences(apart, one) == 1 for one in neighbours(apart, possible, Cluster(9, 1), across_nodes=True))
    assert [str(one) for one in neighbours(together, possible, Cluster(2, 1), across_nodes=False)] == [
        "1x tp1,pp1 colocated"
    ]


def test_a_servable_plan_has_instances_of_one_gpu_only():
    plan = make_plan(replace(_question(gpus=4), servable=True), Here())
    assert all("tp1,pp1" in row["placement"] and "2," not in row["placement"] for row in plan["table"])
    assert plan["impossible"]["tp or pp above 1"] == "the engine does not serve it yet"


def test_the_same_question_gets_the_same_answer():
    assert make_plan(_question(gpus=2), Here()) == make_plan(_question(gpus=2), Here())


def test_targets_that_nothing_keeps_have_no_placement_and_a_reason_for_each_shape():
    plan = make_plan(_question(gpus=2, ttft=0.001), Here())
    assert plan["placement"] is None
    assert "misses the TTFT target" in plan["impossible"]["tp1,pp1 for prefill"]
    for order in ("", ", chunked"):
        assert plan["impossible"][f"1x tp1,pp1 colocated{order}"] == "misses a target at any rate"


def test_a_model_that_no_shape_holds_is_refused_with_the_reasons():
    with pytest.raises(BadProfile, match="cannot be placed"):
        make_plan(_question("opt-175b", gpus=2), Here())


def test_shapes_keep_tensor_parallelism_in_a_node_and_share_layers_evenly():
    possible, impossible = shapes(PROFILE, PROFILE.model("opt-66b"), Cluster(4, 2))
    assert Shape(8, 1) not in possible
    assert Shape(4, 2) in possible
    assert all(64 % shape.pp == 0 for shape in possible)
    assert "64 layers" in impossible["pp3"]


def test_segments_of_both_phases_must_share_a_node():
    cluster = Cluster(8, 2)
    assert fits_segments(Shape(4, 1), Shape(2, 2), cluster)
    assert fits_segments(Shape(4, 2), Shape(4, 2), cluster)  # one stage of each in each node
    assert not fits_segments(Shape(8, 1), Shape(1, 1), cluster)
    assert not fits_segments(Shape(4, 2), Shape(4, 1), cluster)  # the second node would have no decoding


def test_crossing_nodes_allows_pairs_that_no_node_holds():
    cluster = Cluster(4, 2)
    assert fits_nodes(Shape(4, 1), Shape(4, 1), cluster, (1, 1))
    assert not fits_segments(Shape(4, 1), Shape(4, 1), cluster)
    assert not fits_nodes(Shape(4, 1), Shape(4, 1), cluster, (2, 1))
