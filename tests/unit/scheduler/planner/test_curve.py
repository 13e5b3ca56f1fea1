from services.scheduler.planner.curve import attainment_curve
from services.scheduler.planner.goodput import Promise, highest_rate
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Setup
from services.scheduler.simulator.workload import draw

PROMISE = Promise(ttft=0.4, tpot=0.04)
PROFILE = load_profile("a100-80g-distserve")
SETUP = Setup(profile=PROFILE, model=PROFILE.model("opt-13b"), placement=parse_placement("tp1 + tp1"))


def test_the_curve_crosses_the_promised_share_at_the_goodput():
    trace = draw("fixed:512/64", 300, seed=0)
    goodput, _ = highest_rate(SETUP, trace, PROMISE, tolerance=0.01)
    curve = attainment_curve(SETUP, trace, PROMISE, [0.25 * goodput, goodput, 1.2 * goodput])
    below, at, above = (point["joint"] for point in curve)
    assert below == 1.0 > at >= PROMISE.share > above
    assert all(point["joint"] <= min(point["ttft"], point["tpot"]) for point in curve)
