from services.scheduler.events import Accept, Refuse, SendPrefill
from services.scheduler.limits import Limits
from tests.unit.scheduler.world import World, of


def moving(world: World, seconds: float) -> None:
    """Somebody has waited all the time, and a request of 1000 tokens has been sent on every so many `seconds`."""
    world.pair()
    world.submit("r0", tokens=1000)
    for number in range(1, 11):
        world.submit(f"r{number}", tokens=1000)
        world.answer("prefill-1", f"r{number - 1}", "started")
        for _ in range(steps := max(1, int(2 * seconds))):
            world.tick(seconds / steps)
            world.beat("gateway-1")
            world.beat("prefill-1", requests=[(f"r{number - 1}", 0)])
            world.beat("decode-1", linked=["prefill-1"])
        world.kv_computed(f"r{number - 1}")


def test_a_full_queue_refuses_new_requests_but_none_that_was_running():
    world = World(Limits(queue_requests=2))
    world.pair()
    world.submit("running", tokens=1000)
    world.submit("a", tokens=1000)
    world.submit("b", tokens=1000)
    (refusal,) = world.submit("c", tokens=1000)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "queue_full"
    assert of(Accept, world.submit("d", tokens=1000, resumed=True))
    assert world.dispatcher.board.queue.requests == 3


def test_the_queue_is_bounded_in_tokens_too():
    world = World(Limits(queue_tokens=1500))
    world.pair()
    world.submit("running", tokens=1000)
    assert of(Accept, world.submit("a", tokens=1000))
    assert of(Refuse, world.submit("b", tokens=1000))
    assert of(Accept, world.submit("c", tokens=500))


def test_one_prompt_longer_than_the_queue_is_accepted_into_an_empty_queue():
    world = World(Limits(queue_tokens=500))
    world.pair()
    world.submit("running", tokens=1000)
    assert of(Accept, world.submit("long", tokens=2000))


def test_a_full_queue_of_one_model_does_not_stop_another_model():
    world = World(Limits(queue_requests=1))
    world.pair()
    world.submit("running", tokens=1000)
    world.submit("waiting", tokens=1000)
    world.beat("prefill-9", model="other")
    world.beat("decode-9", model="other", linked=["prefill-9"])
    assert of(SendPrefill, world.submit("r", model="other"))[0].instance == "prefill-9"


def test_retry_after_is_the_time_in_which_all_that_is_here_is_computed_at_the_measured_rate():
    """Three wait, and one is with the instance."""
    world = World(Limits(queue_requests=3))
    moving(world, seconds=1.0)
    for name in ("a", "b", "c"):
        world.submit(name, tokens=1000)
    (refusal,) = world.submit("d", tokens=1000)
    assert isinstance(refusal, Refuse)
    assert 3.5 <= refusal.retry_after_seconds <= 4.5


def test_retry_after_stays_between_one_second_and_a_minute():
    world = World(Limits(queue_requests=1, queue_tokens=10**9))
    moving(world, seconds=1.0)
    world.submit("waiting", tokens=10**8)
    (slow,) = world.submit("r", tokens=1000)
    assert isinstance(slow, Refuse)
    assert slow.retry_after_seconds == 60
    fast = World(Limits(queue_requests=1))
    moving(fast, seconds=0.01)
    fast.submit("waiting", tokens=1000)
    (soon,) = fast.submit("r", tokens=10)
    assert isinstance(soon, Refuse)
    assert soon.retry_after_seconds == 1


def test_where_many_wait_a_newcomer_is_refused_if_it_would_take_too_long():
    """A thousand tokens a second: five seconds are 25 requests of 200 tokens."""
    world = World(Limits(queue_seconds=5.0, queue_always=8))
    moving(world, seconds=1.0)
    accepted = sum(bool(of(Accept, world.submit(f"w{number}", tokens=200))) for number in range(40))
    assert 19 <= accepted <= 21, "a thousand are with the instance"
    (refusal,) = world.submit("late", tokens=200)
    assert isinstance(refusal, Refuse)
    assert refusal.reason == "queue_full"
    assert 4.5 <= refusal.retry_after_seconds <= 5.5
    assert of(Accept, world.submit("resumed", tokens=200, resumed=True))


def test_a_few_may_always_wait_however_slow_the_machine_is():
    world = World(Limits(queue_seconds=5.0, queue_always=8))
    moving(world, seconds=20.0)
    assert sum(bool(of(Accept, world.submit(f"w{number}", tokens=1000))) for number in range(12)) == 8


def test_a_calm_time_before_it_says_nothing_about_how_fast_a_burst_is_served():
    world = World(Limits(queue_seconds=5.0, queue_always=8))
    moving(world, seconds=1.0)
    for _ in range(30):
        world.tick(1.0)
        world.beat("prefill-1", requests=[("r10", 0)])
        world.beat("decode-1", linked=["prefill-1"])
    assert sum(bool(of(Accept, world.submit(f"w{number}", tokens=200))) for number in range(20)) == 20


def test_nobody_who_waited_for_an_instance_to_come_back_is_refused_for_how_long_that_took():
    world = World(Limits(queue_seconds=5.0, queue_always=8))
    moving(world, seconds=1.0)
    world.beat("prefill-1", draining=True)
    world.beat("decode-1", draining=True)
    assert all(of(Accept, world.submit(f"w{number}", tokens=500)) for number in range(40))


def test_the_bound_in_seconds_can_be_taken_away():
    world = World(Limits(queue_seconds=0.0, queue_always=8))
    moving(world, seconds=1.0)
    assert all(of(Accept, world.submit(f"w{number}", tokens=1000)) for number in range(40))


def test_resumed_requests_go_before_new_ones_and_keep_their_order():
    world = World()
    world.pair()
    world.submit("running", tokens=1000)
    world.submit("new", tokens=1000)
    world.submit("resumed-1", tokens=1000, resumed=True)
    world.submit("resumed-2", tokens=1000, resumed=True)
    order = []
    running = "running"
    for _ in range(3):
        world.answer("prefill-1", running, "started")
        (sent,) = of(SendPrefill, world.kv_computed(running))
        order.append(running := sent.request)
    assert order == ["resumed-1", "resumed-2", "new"]
