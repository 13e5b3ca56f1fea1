"""What can be computed by hand must come out exactly."""

import pytest

from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Setup, simulate
from services.scheduler.simulator.workload import Trace, draw
from tests.unit.scheduler.simulator.served import serve, setup

PROFILE = load_profile("a100-80g-distserve")


def _alone(prompt: int, answer: int) -> Trace:
    return Trace("alone", [0.0], [prompt], [answer])


def _decode_seconds(prompt: int, answer: int, tp: int) -> float:
    a, b, c = PROFILE.model("opt-13b").times[tp].decode_small
    contexts = range(prompt + 1, prompt + answer)
    return sum(a + (b + 0.0001) * context + c + 2.0 for context in contexts) / 1000


@pytest.mark.parametrize("prompt", [1, 128, 512, 2000])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_one_request_alone_takes_what_the_formula_says(prompt: int, tp: int):
    outcome = serve(f"tp{tp} + tp{tp}", _alone(prompt, 33))
    a, b, c = PROFILE.model("opt-13b").times[tp].prefill
    prefill = (a + b * prompt + c * prompt**2 + 1.0 + 2.0 + 0.0001 * prompt) / 1000
    move = prompt * 819_200 / 600e9
    assert outcome.ttft[0] == pytest.approx(prefill, rel=1e-12)
    assert outcome.tpot[0] * 32 == pytest.approx(move + _decode_seconds(prompt, 33, tp), rel=1e-12)


def test_an_answer_of_one_token_needs_no_decoding():
    outcome = serve("tp1 + tp1", _alone(512, 1))
    assert outcome.tpot[0] == 0
    assert outcome.seconds == outcome.ttft[0]


def test_every_hop_of_the_control_plane_counts():
    calm = setup("tp1 + tp1")
    slow = Setup(profile=calm.profile, model=calm.model, placement=calm.placement, hop_seconds=0.010)
    first, second = simulate(calm, _alone(512, 9)), simulate(slow, _alone(512, 9))
    assert second.ttft[0] - first.ttft[0] == pytest.approx(0.030)  # to the scheduler, to prefill, to the gateway
    assert 8 * (second.tpot[0] - first.tpot[0]) == pytest.approx(0.020)  # to the scheduler, to decode


def test_kv_moves_at_the_speed_of_the_link():
    profile = PROFILE
    slow = Setup(
        profile=profile,
        model=profile.model("opt-66b"),
        placement=parse_placement("tp4 + tp4"),
        link_gigabytes_per_second=3.125,
    )
    outcome = simulate(slow, _alone(512, 2))
    assert outcome.summary()["stages"]["transfer"]["mean_s"] == pytest.approx(512 * 4 * 64 * 9216 / 3.125e9)


def _mean_ttft(placement: str, load: float, requests: int) -> tuple[float, float]:
    """(simulated mean, service time D) at `load` = rate * D for prompts of 512 tokens that are never batched."""
    service = serve(placement, _alone(512, 1), batch_tokens=1)
    group = setup(placement).placement.prefill
    assert group is not None
    seconds = float(service.ttft[0])
    trace = draw("fixed:512/1", requests, seed=11).stretched(seconds / load)
    return float(serve(placement, trace, batch_tokens=1, queue_requests=10**6).ttft.mean()), seconds


@pytest.mark.parametrize(("load", "requests"), [(0.2, 60_000), (0.5, 60_000), (0.8, 200_000)])
def test_the_queue_is_the_one_of_theory(load: float, requests: int):
    """M/D/1: D + R D^2 / (2 (1 - R D)), paper section 3.1."""
    mean, seconds = _mean_ttft("tp1 + tp1", load, requests)
    assert mean == pytest.approx(seconds + load * seconds / (2 * (1 - load)), rel=0.02)


def test_two_pipeline_stages_halve_the_queue_of_theory():
    """Inter-op: D_s + R D_m^2 / (2 (1 - R D_m)), D_m the slowest stage."""
    mean, seconds = _mean_ttft("tp1,pp2 + tp1", 0.9, requests=40_000)
    a, b, c = PROFILE.model("opt-13b").times[1].prefill
    slowest = ((a + b * 512 + c * 512**2) / 2 + 1.0 + 2.0 + 0.0001 * 512) / 1000
    rate = 0.9 / seconds
    assert mean == pytest.approx(seconds + rate * slowest**2 / (2 * (1 - rate * slowest)), rel=0.02)


def test_tensor_parallelism_shortens_both_the_run_and_the_queue():
    """Intra-op: the same queue with D / K."""
    mean, seconds = _mean_ttft("tp2 + tp1", 0.6, requests=40_000)
    assert seconds < 0.75 * _mean_ttft("tp1 + tp1", 0.1, requests=10)[1]
    assert mean == pytest.approx(seconds + 0.6 * seconds / (2 * 0.4), rel=0.02)
