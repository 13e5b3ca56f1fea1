import pytest

from services.scheduler.events import Abort, Accept, Forget, Interrupt, Refuse, ReleaseKv, SendDecode, SendPrefill
from shared.messages.instances import Capacity
from shared.specs.ids import RequestId
from tests.unit.scheduler.world import D1, GATEWAY, P1, World, of

R = RequestId("r")


def test_a_request_is_accepted_and_sent_to_a_prefill_instance():
    world = World()
    world.pair()
    assert world.submit("r") == [
        Accept(request=R, attempt=0),
        SendPrefill(instance=P1, request=R, attempt=0),
    ]


def test_the_same_attempt_again_is_accepted_and_nothing_is_done_twice():
    world = World()
    world.pair()
    world.submit("r")
    assert world.submit("r") == [Accept(request=R, attempt=0)]
    world.answer("prefill-1", "r", "started")
    world.kv_computed("r")
    assert world.submit("r") == [Accept(request=R, attempt=0)]


def test_an_older_attempt_is_refused():
    world = World()
    world.pair()
    world.submit("r", attempt=2)
    (refusal,) = world.submit("r", attempt=1)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "invalid"


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_request_of_one_gateway_is_refused_to_another_whatever_the_attempt(attempt: int):
    world = World()
    world.pair()
    world.decoding("r")
    before = world.dispatcher.snapshot().board.live
    (refusal,) = world.submit("r", attempt=attempt, gateway="gateway-2")
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "invalid"
    assert world.dispatcher.snapshot().board.live == before


def test_a_higher_attempt_ends_the_lower_one_where_it_runs():
    world = World()
    world.pair()
    world.decoding("r")
    assert world.submit("r", attempt=1) == [
        Abort(request=R, attempt=0),
        Forget(request=R, attempt=0),
        Accept(request=R, attempt=1),
        SendPrefill(instance=P1, request=R, attempt=1),
    ]


def test_a_higher_attempt_lets_go_of_kv_that_nobody_has_taken():
    world = World()
    world.pair()
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.kv_computed("r")
    effects = world.submit("r", attempt=1)
    assert of(ReleaseKv, effects) == [ReleaseKv(source=P1, request=R, attempt=0)]
    assert not of(Abort, effects)


def test_a_higher_attempt_keeps_the_place_in_the_queue():
    world = World()
    world.pair()
    world.submit("first", tokens=1000)
    world.submit("second", tokens=1000)
    world.submit("third", tokens=1000)
    assert world.submit("second", attempt=1, tokens=1000) == [
        Forget(request=RequestId("second"), attempt=0),
        Accept(request=RequestId("second"), attempt=1),
    ]
    world.answer("prefill-1", "first", "started")
    sent = of(SendPrefill, world.kv_computed("first"))
    assert [(s.request, s.attempt) for s in sent] == [("second", 1)]


def test_without_any_instance_a_request_is_refused_with_a_time_to_come_back():
    (refusal,) = World().submit("r")
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "no_instance"
    assert refusal.retry_after_seconds > 0


def test_a_prefill_instance_without_a_linked_decode_instance_serves_nobody():
    world = World()
    world.beat("prefill-1")
    world.beat("decode-1")
    (refusal,) = world.submit("r")
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "no_instance"


def test_a_model_that_nobody_has_is_refused_while_others_are_served():
    world = World()
    world.pair()
    (refusal,) = world.submit("r", model="other")
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "no_instance"


def test_a_request_that_may_outgrow_every_instance_is_refused_for_good():
    world = World()
    world.pair()
    (refusal,) = world.submit("r", final=4097)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "too_long"
    assert refusal.retry_after_seconds == 0


def test_a_long_request_goes_where_it_fits():
    world = World()
    small = Capacity(max_model_tokens=512, block_tokens=16, blocks=32, max_batch=8, max_queue_tokens=9999)
    world.beat("prefill-1", capacity=small)
    world.beat("prefill-2")
    world.beat("decode-1", linked=["prefill-1", "prefill-2"])
    assert of(SendPrefill, world.submit("r", tokens=100, final=1000))[0].instance == "prefill-2"


def test_an_abort_takes_a_request_out_of_the_queue_and_its_gateway_hears_of_the_end():
    world = World()
    world.pair()
    world.submit("running", tokens=1000)
    world.submit("r", tokens=1000)
    interrupt, forget = world.abort("r")
    assert isinstance(interrupt, Interrupt)
    assert (interrupt.gateway, interrupt.request, interrupt.attempt, interrupt.wanted) == (GATEWAY, "r", 0, True)
    assert forget == Forget(request=R, attempt=0)
    assert world.stage_of("r") is None


def test_an_abort_lets_go_of_kv_that_no_decode_instance_took():
    world = World()
    world.pair()
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.kv_computed("r")
    assert of(ReleaseKv, world.abort("r")) == [ReleaseKv(source=P1, request=R, attempt=0)]
    assert world.is_empty


def test_an_abort_lets_go_of_kv_that_a_decode_instance_was_just_asked_to_take():
    world = World()
    world.pair()
    world.prefilling("r")
    world.kv_computed("r")
    assert of(ReleaseKv, world.abort("r")) == [ReleaseKv(source=P1, request=R, attempt=0)]


def test_an_abort_leaves_the_kv_of_a_running_request_to_its_decode_instance():
    world = World()
    world.pair()
    world.decoding("r")
    assert world.abort("r") == [Forget(request=R, attempt=0)]


def test_an_abort_of_an_older_attempt_changes_nothing():
    world = World()
    world.pair()
    world.submit("r", attempt=3)
    assert world.abort("r", attempt=2) == []
    assert world.stage_of("r") == "prefilling"


def test_a_start_that_succeeds_after_the_abort_is_aborted_again():
    world = World()
    world.pair()
    world.submit("r")
    world.abort("r")
    assert world.answer("prefill-1", "r", "started") == [Abort(request=R, attempt=0)]


def test_an_ended_request_is_forgotten_at_every_stage():
    world = World()
    world.pair()
    world.submit("running", tokens=1000)
    world.submit("queued", tokens=1000)
    assert world.end("queued") == [Forget(request=RequestId("queued"), attempt=0)]
    assert world.end("running") == [Forget(request=RequestId("running"), attempt=0)]
    world.decoding("decoded")
    assert world.end("decoded") == [Forget(request=RequestId("decoded"), attempt=0)]
    assert world.is_empty


def test_a_request_of_a_prefill_instance_that_drains_is_not_given_to_it():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.beat("prefill-1", draining=True)
    sent = [of(SendPrefill, world.submit(f"r{n}"))[0].instance for n in range(4)]
    assert set(sent) == {"prefill-2"}


def test_early_requests_wait_until_the_instances_have_had_time_to_be_heard():
    world = World(settled=False)
    assert world.submit("r") == [Accept(request=R, attempt=0)]
    assert world.pair() is None
    assert world.stage_of("r") == "queued"
    for _ in range(4):
        assert not world.tick(0.25)
    assert world.tick(0.25) == [SendPrefill(instance=P1, request=R, attempt=0)]


def test_a_colocated_instance_serves_when_there_is_no_prefill_instance():
    world = World()
    world.beat("decode-1", colocated=True)
    sent = of(SendDecode, world.submit("r"))
    assert sent == [SendDecode(instance=D1, request=R, attempt=0, source=None)]


def test_prefill_instances_are_used_even_if_all_are_full_before_colocated_ones():
    world = World()
    world.beat("prefill-1")
    world.beat("decode-1", colocated=True, linked=["prefill-1"])
    world.submit("running", tokens=1000)
    assert world.submit("r", tokens=1000) == [Accept(request=R, attempt=0)]
