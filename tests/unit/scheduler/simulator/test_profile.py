"""Profiles: what ships, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.scheduler.simulator.profile import SHIPPED, BadProfile, load_profile


def test_the_authors_figures_ship_with_their_source_and_licence():
    for engine in ("distserve", "vllm"):
        profile = load_profile(f"a100-80g-{engine}")
        assert "commit 82831f1" in profile.source
        assert json.loads((SHIPPED / f"a100-80g-{engine}.json").read_text())["licence"].startswith("Apache-2.0")
        assert sorted(profile.models) == ["opt-13b", "opt-175b", "opt-66b"]
    assert load_profile("a100-80g-distserve").model("opt-13b").times[1].prefill[0] == pytest.approx(18.10254647)


def test_what_was_derived_says_so_and_what_was_measured_does_not():
    models = load_profile("a100-80g-distserve").models
    assert models["opt-175b"].derived.startswith("Not measured")
    assert not models["opt-66b"].derived


def test_a_derived_model_takes_as_much_longer_as_it_has_more_weights():
    models = load_profile("a100-80g-distserve").models
    for small, large in ((models["opt-66b"].times[tp], models["opt-175b"].times[tp]) for tp in (4, 8)):
        assert large.prefill[1] / small.prefill[1] == pytest.approx(175 / 66, rel=0.02)
        assert large.decode_small[0] / small.decode_small[0] == pytest.approx(175 / 66, rel=0.02)


def test_kv_capacity_is_the_measured_one_or_what_the_weights_leave():
    model = load_profile("a100-80g-distserve").model("opt-66b")
    assert model.kv_capacity(4, 1, 80 << 30) == 78_496
    assert model.kv_capacity(4, 3, 80 << 30) == pytest.approx(331_000, rel=0.05)


@pytest.mark.parametrize(
    ("tp", "pp", "reason"), [(5, 1, "no figures"), (1, 1, "no figures"), (2, 99, "64 layers"), (4, 3, "evenly")]
)
def test_a_shape_that_cannot_be_is_refused_with_the_reason(tp: int, pp: int, reason: str):
    with pytest.raises(BadProfile, match=reason):
        load_profile("a100-80g-distserve").model("opt-66b").check(tp, pp, 80 << 30)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(BadProfile, match="does not fit: 132 GB"):
        load_profile("a100-80g-distserve").model("opt-66b").check(2, 1, 40 << 30)


def _change(tmp_path: Path, change: dict[str, Any]) -> str:
    data = json.loads((SHIPPED / "a100-80g-vllm.json").read_text())
    for path, value in change.items():
        *parents, last = path.split("/")
        place = data
        for key in parents:
            place = place[key]
        place[last] = value
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(data))
    return str(file)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 9}, "format 9"),
        ({"models": {}}, "no model"),
        ({"models/opt-13b/parallel/1/prefill_ms": [1.0, -2.0, 0.0]}, "times must grow"),
        ({"models/opt-13b/parallel/1/decode_small_ms": [float("inf"), 2.0, 0.0]}, "finite"),
        ({"models/opt-13b/parallel/1/large_batch": 0}, "at least 1 request"),
        ({"models/opt-13b/parallel/0": {}}, "not complete"),
        ({"overhead/iteration_ms": -1.0}, "not negative"),
        ({"device/link_gigabytes_per_second": float("nan")}, "must be positive"),
        ({"models/opt-13b/layers": 0}, "at least 1"),
        ({"models/opt-13b/parallel/1": {}}, "not complete"),
        ({"transfer_setup_ms": -1.0}, "not negative"),
        ({"device": {"name": "x"}}, "not complete"),
    ],
)
def test_a_bad_profile_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], complaint: str):
    with pytest.raises(BadProfile, match=complaint):
        load_profile(_change(tmp_path, change))


def test_a_missing_profile_names_those_that_ship():
    with pytest.raises(BadProfile, match="a100-80g-distserve, a100-80g-vllm"):
        load_profile("h100")


def test_a_model_that_a_profile_does_not_have_is_named():
    with pytest.raises(BadProfile, match="no model 'opt-30b' \\(known: opt-13b"):
        load_profile("a100-80g-vllm").model("opt-30b")
