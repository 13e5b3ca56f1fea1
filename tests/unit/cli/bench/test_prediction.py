"""What the simulator is asked beside a measurement."""

import pytest

from cli.bench.prediction import predicted
from cli.bench.shapes import Shape
from cli.problems import Problem
from services.scheduler.planner.goodput import Promise
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.workload import draw


def test_a_profile_of_several_models_is_refused_in_a_line():
    with pytest.raises(Problem, match="known: opt-13b"):
        predicted(load_profile("a100-80g-distserve"), Shape(1, 1), [draw("code", 20, 0)], Promise(ttft=1, tpot=1))
