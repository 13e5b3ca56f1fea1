from services.scheduler.events import Abort, Accept, BeatHeard, Closing, Forget, Interrupt, ReportInstance, SendPrefill
from shared.messages.instances import Capacity
from shared.specs.ids import InstanceId, RequestId
from tests.unit.scheduler.world import GATEWAY, P1, World, of

R = RequestId("r")


def keep_alive(world: World, seconds: float, *instances: str, gateway: str = GATEWAY, **facts: object) -> list[object]:
    """Time passes; these instances and the gateway beat, nobody else does."""
    effects: list[object] = []
    for _ in range(round(seconds)):
        for _ in range(4):
            effects += world.tick(0.25)
        for instance in instances:
            links = {"linked": ["prefill-1", "prefill-2"]} if instance.startswith("decode") else {}
            effects += world.beat(instance, **links, **facts)
        if gateway:
            world.feed(BeatHeard(now=world.now, instance=InstanceId(gateway), role="gateway", number=0))
    return effects


def test_an_instance_without_a_beat_for_three_seconds_is_lost_and_its_requests_are_interrupted():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.prefilling("a", "prefill-1")
    world.prefilling("b", "prefill-2")
    effects = keep_alive(world, 4, "prefill-2", "decode-1", requests=[("b", 0)])
    assert of(ReportInstance, effects) == [ReportInstance(instance=P1, state="lost")]
    assert [(i.gateway, i.request, i.attempt) for i in of(Interrupt, effects)] == [(GATEWAY, "a", 0)]
    assert [a.request for a in of(Abort, effects)] == ["a"]
    assert world.stage_of("b") is not None


def test_a_lost_prefill_instance_takes_waiting_kv_with_it():
    world = World()
    world.pair()
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.kv_computed("r")
    assert [i.request for i in of(Interrupt, keep_alive(world, 4, "decode-1", draining=True))] == ["r"]


def test_a_lost_decode_instance_interrupts_what_it_ran():
    world = World()
    world.pair()
    world.decoding("r")
    assert [i.request for i in of(Interrupt, keep_alive(world, 4, "prefill-1"))] == ["r"]
    assert world.is_empty


def test_silence_during_our_own_sleep_loses_nobody():
    world = World()
    world.pair()
    world.decoding("r")
    assert world.tick(30.0) == []
    assert keep_alive(world, 2, "prefill-1", "decode-1", requests=[("r", 0)]) == []
    assert world.stage_of("r") == "decoding"


def test_after_our_own_sleep_the_lost_are_still_found():
    world = World()
    world.pair()
    world.decoding("r")
    world.tick(30.0)
    assert of(Interrupt, keep_alive(world, 4, "prefill-1"))


def test_the_requests_of_a_lost_gateway_are_aborted_everywhere():
    world = World()
    world.pair()
    world.decoding("r")
    world.submit("other", gateway="gateway-2")
    world.answer("prefill-1", "other", "started")
    effects = keep_alive(world, 6, "prefill-1", "decode-1", gateway="gateway-2", requests=[("r", 0), ("other", 0)])
    assert [a.request for a in of(Abort, effects)] == ["r"]
    assert not of(Interrupt, effects)
    assert world.stage_of("other") is not None


def test_a_state_that_changes_is_reported_once():
    world = World()
    assert world.beat("prefill-1", ready=False) == [ReportInstance(instance=P1, state="not_ready")]
    assert world.beat("prefill-1") == [ReportInstance(instance=P1, state="ready")]
    assert world.beat("prefill-1") == []
    assert world.beat("prefill-1", draining=True) == [ReportInstance(instance=P1, state="draining")]


def test_a_beat_that_a_later_one_has_overtaken_is_ignored():
    world = World()
    world.pair()
    late = BeatHeard(now=world.now, instance=InstanceId("prefill-1"), role="prefill", number=1, ready=False)
    world.beat("prefill-1")
    assert world.feed(late) == []
    assert of(SendPrefill, world.submit("r"))


def test_a_fresh_scheduler_learns_from_beats_who_has_a_request_and_does_not_place_it_again():
    world = World(settled=False)
    assert of(Accept, world.submit("r", attempt=2))
    world.beat("prefill-1")
    world.beat("decode-1", linked=["prefill-1"], requests=[("r", 2)])
    assert [effect for _ in range(8) for effect in world.tick(0.25)] == []
    assert world.stage_of("r") == "decoding"


def test_a_claim_after_the_beat_is_accepted_and_lets_the_gateway_be_told_of_a_loss():
    world = World(settled=False)
    world.beat("prefill-1")
    world.beat("decode-1", linked=["prefill-1"], requests=[("r", 2)])
    assert world.submit("r", attempt=2) == [Accept(request=R, attempt=2)]
    effects = keep_alive(world, 5, "prefill-1")
    assert [(i.gateway, i.request, i.attempt) for i in of(Interrupt, effects)] == [(GATEWAY, "r", 2)]


def test_of_two_instances_that_list_a_request_the_decode_instance_has_it():
    world = World(settled=False)
    world.beat("prefill-1", requests=[("r", 0)])
    world.beat("decode-1", linked=["prefill-1"], requests=[("r", 0)])
    assert world.stage_of("r") == "decoding"
    world.beat("prefill-1", requests=[("r", 0)])
    assert world.stage_of("r") == "decoding"


def test_an_instance_that_lists_an_old_attempt_is_told_to_stop_again():
    world = World()
    world.pair()
    world.submit("r", attempt=3)
    assert world.beat("decode-1", linked=["prefill-1"], requests=[("r", 1)]) == [Abort(request=R, attempt=1)]


def test_an_instance_that_lists_a_newer_attempt_is_believed():
    world = World()
    world.pair()
    world.submit("r", attempt=1)
    effects = world.beat("decode-1", linked=["prefill-1"], requests=[("r", 2)])
    assert effects == [Abort(request=R, attempt=1), Forget(request=R, attempt=1)]
    assert world.stage_of("r") == "decoding"


def test_a_request_that_its_instance_no_longer_lists_is_forgotten_in_silence():
    world = World()
    world.pair()
    world.decoding("r")
    effects = keep_alive(world, 5, "prefill-1", "decode-1")
    assert effects == [Forget(request=R, attempt=0)]
    assert world.is_empty


def test_queued_requests_that_nobody_can_serve_any_more_go_back_to_their_gateways():
    world = World()
    world.pair()
    world.prefilling("running", tokens=1000)
    world.submit("r", tokens=1000)
    effects = keep_alive(world, 70)
    assert [i.request for i in of(Interrupt, effects)] == ["running", "r"]
    assert world.is_empty


def test_kv_that_no_decode_instance_can_take_any_more_goes_back_to_its_gateway():
    world = World()
    world.pair()
    world.prefilling("r")
    world.kv_computed("r")
    world.answer("decode-1", "r", "unreachable")
    effects = keep_alive(world, 70, "prefill-1", requests=[("r", 0)])
    assert [i.request for i in of(Interrupt, effects)] == ["r"]


def test_a_request_too_long_for_those_who_are_left_does_not_hold_up_the_others():
    world = World()
    small = {"max_model_tokens": 512, "block_tokens": 16, "blocks": 64, "max_batch": 8, "max_queue_tokens": 100}
    world.beat("prefill-1", capacity=Capacity(**small, max_queue_requests=1))
    world.beat("prefill-2")
    world.beat("decode-1", linked=["prefill-1", "prefill-2"])
    world.prefilling("a", "prefill-1")
    world.prefilling("b", "prefill-2", tokens=1000, final=1100)
    world.submit("long", tokens=1000, final=1100)
    world.submit("short")
    capacity = {"capacity": Capacity(**small, max_queue_requests=1)}
    effects: list[object] = []
    for _ in range(14):
        effects += keep_alive(world, 1, "decode-1", requests=[])
        effects += world.beat("prefill-1", requests=[("a", 0)], **capacity)
    assert [i.request for i in of(Interrupt, effects)] == ["b", "long"]
    assert [s.request for s in of(SendPrefill, world.kv_computed("a", "prefill-1"))] == ["short"]


def test_a_scheduler_that_goes_away_gives_back_what_waits_there_and_leaves_alone_what_runs():
    world = World()
    world.pair()
    world.prefilling("running", tokens=1000)
    world.submit("r", tokens=1000)
    effects = world.feed(Closing(now=world.now))
    assert [i.request for i in of(Interrupt, effects)] == ["r"]
    assert not of(Abort, effects)
