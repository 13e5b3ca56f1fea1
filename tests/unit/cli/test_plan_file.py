"""A plan as a stack starts from it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.plan_file import compose_line, read_plan, understand
from cli.problems import Problem

ONE = {"tp": 1, "pp": 1}


def plan(**changes: Any) -> dict[str, Any]:
    instances = {
        "prefill": ONE | {"count": 2},
        "decode": ONE | {"count": 3},
        "order": None,
        "settings": {"DISTSERVE_MAX_BATCH": 128, "DISTSERVE_PREFILL_BATCH_TOKENS": 900},
    }
    fields = {"format": 1, "placement": "x", "targets": {"ttft_s": 0.25, "tpot_s": 0.1}}
    return fields | {"instances": instances | changes.pop("instances", {})} | changes


def test_a_plan_says_how_many_of_each_with_which_settings_for_which_targets(tmp_path: Path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan()))
    found = read_plan(file)
    assert (found.prefill, found.decode) == (2, 3)
    assert (found.ttft_seconds, found.tpot_seconds) == (0.25, 0.1)
    assert compose_line(found) == (
        "DISTSERVE_MAX_BATCH=128 DISTSERVE_PREFILL_BATCH_TOKENS=900 "
        "docker compose up --detach --scale prefill=2 --scale decode=3"
    )


def test_a_colocated_plan_has_no_prefill_instances_and_tells_the_engines():
    found = understand(plan(instances={"prefill": None, "order": "chunked"}), "p")
    assert found.prefill == 0
    assert found.settings["DISTSERVE_COLOCATED"] == "1"
    assert found.settings["DISTSERVE_COLOCATED_POLICY"] == "chunked"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "the file must be an object"),
        ({}, "format is missing"),
        (plan(format=9), "format is 9"),
        (plan(placement=None), "placement is null"),
        (plan(targets=3), "targets must be an object"),
        (plan(targets={"ttft_s": -1}), "targets.ttft_s is -1"),
        (plan(instances={"decode": None}), "instances.decode must be an object"),
        (plan(instances={"decode": ONE}), "instances.decode.count is missing"),
        (plan(instances={"decode": ONE | {"count": 0}}), "instances.decode.count is 0"),
        (plan(instances={"decode": ONE | {"count": True}}), "instances.decode.count is True"),
        (plan(instances={"prefill": {"count": 1, "tp": 2, "pp": 1}}), "prefill.tp is 2: tensor parallelism other"),
        (plan(instances={"decode": {"count": 1, "tp": 1, "pp": 3}}), "decode.pp is 3: pipeline stages other"),
        (plan(instances={"prefill": None}), "instances.order is None"),
        (plan(instances={"settings": {"DISTSERVE_MODEL": "x"}}), "instances.settings.DISTSERVE_MODEL is no setting"),
        (plan(instances={"settings": {"DISTSERVE_MAX_BATCH": "many"}}), "DISTSERVE_MAX_BATCH is 'many'"),
    ],
)
def test_the_field_that_cannot_be_followed_is_named(data: object, complaint: str):
    with pytest.raises(Problem, match=complaint):
        understand(data, "p")


def test_a_file_that_is_no_plan_is_named(tmp_path: Path):
    with pytest.raises(Problem, match="nowhere"):
        read_plan(tmp_path / "nowhere")
    file = tmp_path / "text"
    file.write_text("{")
    with pytest.raises(Problem, match="is not JSON"):
        read_plan(file)
