"""Short ways to simulate, for tests."""

from pathlib import Path
from typing import Any

from services.scheduler.simulator.outcome import Outcome
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Policy, Setup, simulate
from services.scheduler.simulator.workload import Trace

REFERENCE = Path(__file__).resolve().parents[5] / "shared" / "reference"


def setup(placement: str, engine: str = "distserve", model: str = "opt-13b", **policy: Any) -> Setup:
    profile = load_profile(f"a100-80g-{engine}")
    settings = Policy(**policy)
    return Setup(profile=profile, model=profile.model(model), placement=parse_placement(placement), policy=settings)


def serve(placement: str, trace: Trace, **policy: Any) -> Outcome:
    return simulate(setup(placement, **policy), trace)
