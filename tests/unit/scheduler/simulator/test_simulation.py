"""What a placement does with traffic."""

import numpy as np
import pytest

from services.scheduler.simulator.profile import BadProfile
from services.scheduler.simulator.simulation import simulate
from services.scheduler.simulator.targets import Targets
from services.scheduler.simulator.workload import BadWorkload, Trace, draw
from tests.unit.scheduler.simulator.served import serve, setup

CHAT = draw("chatbot", 400, seed=1)


@pytest.mark.parametrize("placement", ["tp1 + tp1", "2x tp1 + tp1,pp2", "tp1 colocated", "2x tp1,pp2 colocated"])
def test_the_same_trace_gives_the_same_instants(placement: str):
    first, second = serve(placement, CHAT), serve(placement, CHAT)
    assert np.array_equal(first.ttft, second.ttft)
    assert np.array_equal(first.tpot, second.tpot)


@pytest.mark.parametrize("order", ["prefill_priority", "chunked"])
@pytest.mark.parametrize("placement", ["tp1 + tp1", "2x tp2 + tp1,pp2", "tp1 colocated", "2x tp1,pp2 colocated"])
def test_every_request_ends_and_every_block_is_free_again(placement: str, order: str):
    outcome = serve(placement, CHAT.stretched(0.2), order=order)
    assert outcome.ended.all()
    for instance in (*outcome.prefills, *outcome.decodes):
        assert instance.load(outcome.seconds).free_blocks == instance.capacity.blocks
        assert not instance.present


def test_more_traffic_makes_everybody_wait_longer():
    calm, busy = serve("tp1 + tp1", CHAT), serve("tp1 + tp1", CHAT.stretched(0.3))
    assert (busy.ttft >= calm.ttft - 1e-9).mean() > 0.99
    assert busy.ttft.mean() > 1.2 * calm.ttft.mean()


def test_prefill_spoils_the_token_times_of_a_colocated_instance_only():
    trace = draw("fixed:1500/100", 300, seed=2).stretched(0.5)
    apart, together = serve("tp1 + tp1", trace), serve("tp1 colocated", trace)
    assert np.percentile(apart.tpot, 90) < 0.7 * np.percentile(together.tpot, 90)


def test_chunks_bound_the_gap_between_tokens_at_the_price_of_the_first_token():
    trace = draw("fixed:1500/100", 300, seed=2).stretched(0.7)
    whole = serve("tp1 colocated", trace)
    chunked = serve("tp1 colocated", trace, order="chunked", chunk_tokens=256)
    assert chunked.ttft.mean() > whole.ttft.mean()


def test_two_prefill_instances_share_the_queue():
    trace = draw("fixed:1000/20", 400, seed=3).stretched(1 / 12)
    one, two = serve("1x tp1 + tp1", trace), serve("2x tp1 + tp1", trace)
    assert two.ttft.mean() < 0.5 * one.ttft.mean()


def test_kv_that_is_not_pulled_stops_prefill():
    """Back-pressure: decode memory full, then prefill memory full, then everybody waits; nobody is lost."""
    trace = Trace("burst", [0.0] * 300, [1000] * 300, [1000] * 300)
    outcome = serve("tp1 + tp1", trace)
    shares = outcome.summary()["utilisation"]
    assert shares["prefill_kv_peak"] > 0.9
    assert shares["decode_kv_peak"] > 0.9
    assert outcome.ended.all()


def test_members_are_preempted_when_blocks_run_out_and_end_all_the_same():
    trace = Trace("growing", [0.0] * 200, [60] * 200, [1900] * 200)
    outcome = serve("tp1 + tp1", trace)
    assert outcome.summary()["preemptions"] > 0
    assert outcome.ended.all()
    assert all(d.load(outcome.seconds).free_blocks == d.capacity.blocks for d in outcome.decodes)


def test_a_simulation_stops_when_the_target_is_lost():
    targets = Targets(ttft=0.05, tpot=0.1, allowed=20)
    outcome = simulate(setup("tp1 + tp1"), CHAT, targets)
    assert targets.missed == 21
    assert outcome.ended.sum() < 60


def test_a_simulation_stops_when_the_target_is_sure():
    targets = Targets(ttft=9.0, tpot=9.0, allowed=len(CHAT) // 2)
    outcome = simulate(setup("tp1 + tp1"), CHAT, targets)
    assert (targets.kept, targets.lost) == (len(CHAT) - targets.allowed, False)
    assert not outcome.ended.all()


def test_stages_add_up_to_the_whole_time():
    outcome = serve("tp2 + tp1", CHAT)
    shares = [stage["share"] for stage in outcome.summary()["stages"].values()]
    total = sum(stage["mean_s"] for stage in outcome.summary()["stages"].values())
    steps = np.array(CHAT.outputs) - 1
    assert sum(shares) == pytest.approx(1)
    assert total == pytest.approx(float((outcome.ttft + outcome.tpot * steps).mean()), rel=1e-6)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(BadProfile, match="no figures for tensor parallelism 1"):
        simulate(setup("tp1 + tp4", model="opt-66b"), CHAT)


def test_a_request_longer_than_the_model_is_refused():
    with pytest.raises(BadWorkload, match="3000 tokens, 2048 fit"):
        serve("tp1 + tp1", Trace("long", [0.0], [2900], [100]))
