from services.scheduler.events import Accept, Refuse, SendPrefill
from services.scheduler.limits import Limits
from tests.unit.scheduler.world import CAPACITY, World, of


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


def test_retry_after_is_the_time_in_which_the_queue_drains_at_the_measured_rate():
    world = World(Limits(queue_requests=3))
    world.pair()
    world.submit("r0", tokens=1000)
    for number in range(1, 11):  # 1000 tokens a second leave the queue
        world.submit(f"r{number}", tokens=1000)
        world.answer("prefill-1", f"r{number - 1}", "started")
        world.tick(0.5)
        world.tick(0.5)
        world.beat("prefill-1", requests=[(f"r{number - 1}", 0)])
        world.beat("decode-1", linked=["prefill-1"])
        world.kv_computed(f"r{number - 1}")
    for name in ("a", "b", "c"):
        world.submit(name, tokens=1000)
    (refusal,) = world.submit("d", tokens=1000)
    assert isinstance(refusal, Refuse)
    assert 2.5 <= refusal.retry_after_seconds <= 3.5


def test_retry_after_stays_between_one_second_and_a_minute():
    world = World(Limits(queue_requests=1, queue_tokens=10**9))
    world.beat("prefill-1", capacity=CAPACITY)
    world.beat("decode-1", linked=["prefill-1"])
    world.submit("running", tokens=1000)
    world.submit("waiting", tokens=10**8)
    (slow,) = world.submit("r", tokens=1000)
    assert isinstance(slow, Refuse)
    assert slow.retry_after_seconds == 60
    fast = World(Limits(queue_requests=1))
    fast.pair()
    fast.submit("running", tokens=1000)
    fast.submit("waiting", tokens=1000)
    (soon,) = fast.submit("r", tokens=10)
    assert isinstance(soon, Refuse)
    assert soon.retry_after_seconds == 1


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
