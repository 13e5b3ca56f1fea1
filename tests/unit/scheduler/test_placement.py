from services.scheduler.events import Abort, Forget, Interrupt, ReleaseKv, RenewKv, SendDecode, SendPrefill
from shared.messages.instances import Capacity, Load
from shared.specs.ids import RequestId
from tests.unit.scheduler.world import CAPACITY, D1, D2, P1, P2, World, of

R = RequestId("r")


def test_a_prompt_goes_to_the_prefill_instance_with_the_least_queued_tokens():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    sent = [
        of(SendPrefill, world.submit(name, tokens=tokens))[0].instance
        for name, tokens in [("a", 500), ("b", 100), ("c", 100), ("d", 100), ("e", 300), ("f", 100)]
    ]
    assert sent == ["prefill-1", "prefill-2", "prefill-2", "prefill-2", "prefill-2", "prefill-1"]


def test_work_that_an_instance_reports_but_we_did_not_send_counts_too():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.beat("prefill-1", load=Load(queued_tokens=300))
    sent = [of(SendPrefill, world.submit(f"r{n}"))[0].instance for n in range(4)]
    assert sent == ["prefill-2", "prefill-2", "prefill-2", "prefill-1"]


def test_computed_prompts_count_no_longer():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.prefilling("a", "prefill-1", tokens=500)
    world.prefilling("b", "prefill-2", tokens=300)
    world.kv_computed("a", "prefill-1", tokens=500)
    assert of(SendPrefill, world.submit("c"))[0].instance == "prefill-1"


def test_what_no_prefill_instance_may_hold_waits_and_is_placed_in_order():
    world = World()
    world.pair()
    world.prefilling("a", tokens=900)
    for name in ("z", "y", "x"):
        assert not of(SendPrefill, world.submit(name, tokens=400))
    sent = of(SendPrefill, world.kv_computed("a", tokens=900))
    assert [s.request for s in sent] == ["z", "y"]


def test_requests_held_by_a_prefill_instance_are_bounded_too():
    world = World()
    world.pair()
    sent = [bool(of(SendPrefill, world.submit(f"r{n}", tokens=1))) for n in range(9)]
    assert sent == [True] * 8 + [False]


def test_an_idle_prefill_instance_takes_a_prompt_longer_than_its_queue():
    world = World()
    world.pair()
    assert of(SendPrefill, world.submit("r", tokens=3000, final=3100))


def test_a_prefill_instance_that_refuses_is_full_until_its_next_beat():
    world = World()
    world.pair()
    world.submit("r")
    assert world.answer("prefill-1", "r", "full") == []
    assert world.stage_of("r") == "queued"
    world.tick(0.25)
    assert world.stage_of("r") == "queued"
    assert world.beat("prefill-1") == [SendPrefill(instance=P1, request=R, attempt=0)]


def test_a_refused_request_goes_to_the_next_instance_at_once():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.submit("r")
    assert world.answer("prefill-1", "r", "unreachable") == [SendPrefill(instance=P2, request=R, attempt=0)]


def test_a_refused_request_comes_before_those_that_arrived_later():
    world = World()
    world.pair()
    world.submit("first", tokens=1000)
    world.submit("second", tokens=1000)
    world.answer("prefill-1", "first", "full")
    assert [s.request for s in of(SendPrefill, world.beat("prefill-1"))] == ["first"]


def test_a_start_without_an_answer_is_interrupted_because_the_instance_may_have_it():
    world = World()
    world.pair()
    world.submit("r")
    interrupt, abort, forget = world.answer("prefill-1", "r", "unanswered")
    assert isinstance(interrupt, Interrupt)
    assert abort == Abort(request=R, attempt=0)
    assert forget == Forget(request=R, attempt=0)


def test_a_request_that_its_instance_rejects_goes_back_to_its_gateway():
    world = World()
    world.pair()
    world.submit("r")
    assert of(Interrupt, world.answer("prefill-1", "r", "rejected"))
    assert world.is_empty


def test_the_decode_instance_is_chosen_when_the_kv_is_there_by_its_free_blocks():
    world = World()
    world.pair(decodes=["decode-1", "decode-2"])
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], load=Load(free_blocks=10))
    world.beat("decode-2", linked=["prefill-1"], load=Load(free_blocks=500))
    assert world.kv_computed("r") == [SendDecode(instance=D2, request=R, attempt=0, source=P1)]


def test_blocks_promised_since_the_last_beat_are_not_free():
    world = World()
    world.pair(decodes=["decode-1", "decode-2"])
    sent = []
    for number in range(4):
        world.prefilling(f"r{number}", tokens=100)
        sent += [s.instance for s in of(SendDecode, world.kv_computed(f"r{number}"))]
    assert sent == ["decode-1", "decode-2", "decode-1", "decode-2"]


def test_a_beat_that_lists_a_request_has_counted_its_blocks():
    world = World()
    world.pair(decodes=["decode-1", "decode-2"])
    world.decoding("a")
    world.beat("decode-1", linked=["prefill-1"], load=Load(free_blocks=1020, running=1), requests=[("a", 0)])
    world.beat("decode-2", linked=["prefill-1"], load=Load(free_blocks=1019))
    world.prefilling("b")
    assert of(SendDecode, world.kv_computed("b"))[0].instance == "decode-1"


def test_blocks_of_a_request_that_ended_since_the_last_beat_are_free_again():
    world = World()
    world.pair(decodes=["decode-1", "decode-2"])
    world.decoding("a")
    world.beat("decode-1", linked=["prefill-1"], load=Load(free_blocks=1017, running=1), requests=[("a", 0)])
    world.beat("decode-2", linked=["prefill-1"], load=Load(free_blocks=1020))
    world.end("a")
    world.prefilling("b")
    assert of(SendDecode, world.kv_computed("b"))[0].instance == "decode-1"


def test_kv_goes_only_where_its_link_is_good_and_model_and_format_agree():
    world = World()
    world.pair()
    world.beat("decode-1", linked=["prefill-1"], load=Load(free_blocks=1))
    world.beat("decode-2", linked=[])
    world.beat("decode-3", linked=["prefill-1"], kv_format="fp32")
    world.beat("decode-4", linked=["prefill-1"], model="other")
    world.beat("decode-5", linked=["prefill-1"], ready=False)
    world.beat("decode-6", linked=["prefill-1"], draining=True)
    world.prefilling("r")
    assert of(SendDecode, world.kv_computed("r"))[0].instance == "decode-1"


def test_kv_waits_under_a_renewed_lease_until_a_decode_instance_appears():
    world = World()
    world.pair()
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], ready=False)
    assert world.kv_computed("r") == []
    renewals = [effect for _ in range(8) for effect in of(RenewKv, world.tick(0.25))]
    assert renewals == [RenewKv(source=P1, requests=((R, 0),))] * 2
    assert of(SendDecode, world.beat("decode-2", linked=["prefill-1"]))[0].instance == "decode-2"
    assert not [effect for _ in range(8) for effect in of(RenewKv, world.tick(0.25))]


def test_kv_that_a_full_decode_instance_refused_is_offered_again_after_its_beat():
    world = World()
    world.pair()
    world.prefilling("r")
    world.kv_computed("r")
    assert world.answer("decode-1", "r", "full") == []
    assert world.stage_of("r") == "kv_waiting"
    assert of(SendDecode, world.beat("decode-1", linked=["prefill-1"]))


def test_no_more_is_sent_to_a_decode_instance_than_it_runs_or_lets_wait():
    world = World()
    tight = Capacity(max_model_tokens=4096, block_tokens=16, blocks=64, max_batch=2, max_queue_requests=1)
    world.beat("prefill-1")
    world.beat("decode-1", linked=["prefill-1"], capacity=tight)
    sent = []
    for number in range(4):
        world.prefilling(f"r{number}", tokens=10)
        sent += [s.request for s in of(SendDecode, world.kv_computed(f"r{number}", tokens=10))]
    assert sent == ["r0", "r1"]
    world.answer("decode-1", "r0", "started")
    assert [s.request for s in of(SendDecode, world.end("r0"))] == ["r2"]


def test_kv_said_to_be_ready_twice_is_placed_once():
    world = World()
    world.pair()
    world.prefilling("r")
    assert of(SendDecode, world.kv_computed("r"))
    assert world.kv_computed("r") == []
    world.answer("decode-1", "r", "started")
    assert world.kv_computed("r") == []


def test_kv_that_was_computed_at_a_second_instance_too_is_let_go_there():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.prefilling("r")
    world.kv_computed("r", "prefill-1")
    assert world.kv_computed("r", "prefill-2") == [ReleaseKv(source=P2, request=R, attempt=0)]


def test_kv_of_an_older_attempt_is_let_go():
    world = World()
    world.pair()
    world.submit("r", attempt=1)
    assert world.kv_computed("r", attempt=0) == [ReleaseKv(source=P1, request=R, attempt=0)]


def test_kv_of_an_unknown_request_is_placed_as_if_it_had_been_known():
    world = World()
    world.pair()
    assert world.kv_computed("r") == [SendDecode(instance=D1, request=R, attempt=0, source=P1)]


def test_kv_may_be_there_before_the_answer_that_its_prefill_has_started():
    world = World()
    world.pair()
    world.submit("r")
    assert of(SendDecode, world.kv_computed("r"))
    assert world.answer("prefill-1", "r", "started") == []
    world.answer("decode-1", "r", "started")
    assert world.stage_of("r") == "decoding"


def test_kv_whose_lease_ended_while_it_waited_interrupts_the_request():
    world = World()
    world.pair()
    world.prefilling("r")
    world.beat("decode-1", linked=["prefill-1"], draining=True)
    world.kv_computed("r")
    assert of(Interrupt, world.kv_lost("r"))
    assert world.is_empty


def test_a_lease_that_ends_after_a_decode_instance_has_the_kv_changes_nothing():
    world = World()
    world.pair()
    world.decoding("r")
    assert world.kv_lost("r") == []


def test_a_colocated_instance_that_is_full_leaves_the_request_in_the_queue():
    world = World()
    world.beat("decode-1", colocated=True)
    world.submit("r")
    world.answer("decode-1", "r", "full")
    assert world.stage_of("r") == "queued"
    assert of(SendDecode, world.beat("decode-1", colocated=True))[0].source is None


def test_colocated_work_goes_to_the_least_loaded_instance():
    world = World()
    world.beat("decode-1", colocated=True, capacity=CAPACITY, load=Load(free_blocks=100, running=3))
    world.beat("decode-2", colocated=True, capacity=CAPACITY, load=Load(free_blocks=900, running=1))
    assert of(SendDecode, world.submit("r"))[0].instance == "decode-2"


def test_what_failed_at_one_instance_waits_for_another_even_if_that_one_is_free():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    world.beat("prefill-2", load=Load(queued_tokens=50_000))
    world.submit("r", attempt=1, avoid=["prefill-1"])
    assert world.stage_of("r") == "queued"
    assert world.beat("prefill-2") == [SendPrefill(instance=P2, request=R, attempt=1)]


def test_what_failed_at_every_instance_goes_to_any():
    world = World()
    world.pair(["prefill-1", "prefill-2"])
    effects = world.submit("r", attempt=2, avoid=["prefill-1", "prefill-2"])
    assert of(SendPrefill, effects)


def test_what_failed_in_decoding_is_decoded_elsewhere_by_whoever_computed_it():
    world = World()
    world.pair(decodes=["decode-1", "decode-2"])
    world.beat("decode-2", linked=["prefill-1"], load=Load(free_blocks=10))
    world.prefilling("r", avoid=["decode-1"])
    effects = world.kv_computed("r", avoid=["decode-1"])
    assert effects == [SendDecode(instance=D2, request=R, attempt=0, source=P1)]


def test_a_colocated_instance_at_which_it_failed_is_avoided_too():
    world = World()
    world.beat("decode-1", colocated=True)
    world.beat("decode-2", colocated=True, load=Load(free_blocks=100))
    (send,) = of(SendDecode, world.submit("r", attempt=1, avoid=["decode-1"]))
    assert send.instance == D2


def test_a_later_attempt_of_what_still_waits_avoids_where_it_failed():
    world = World()
    world.pair()
    for name in ("prefill-1", "prefill-2"):
        world.beat(name, load=Load(queued_tokens=50_000))
    world.beat("decode-1", linked=["prefill-1", "prefill-2"])
    world.submit("r")
    world.submit("r", attempt=1, avoid=["prefill-1"])
    assert of(SendPrefill, world.beat("prefill-1")) == []
    assert world.beat("prefill-2") == [SendPrefill(instance=P2, request=R, attempt=1)]
