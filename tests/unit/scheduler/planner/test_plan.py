"""The planner's answer."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any

import pytest

from services.scheduler.planner.candidates import Cluster, Shape, fits_nodes, fits_segments, shapes
from services.scheduler.planner.goodput import Promise
from services.scheduler.planner.plan import make_plan
from services.scheduler.planner.search import Question
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


def test_the_same_question_gets_the_same_answer():
    assert make_plan(_question(gpus=2), Here()) == make_plan(_question(gpus=2), Here())


def test_targets_that_nothing_keeps_have_no_placement_and_a_reason_for_each_shape():
    plan = make_plan(_question(gpus=2, ttft=0.001), Here())
    assert plan["placement"] is None
    assert "misses the TTFT target" in plan["impossible"]["tp1,pp1 for prefill"]


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
