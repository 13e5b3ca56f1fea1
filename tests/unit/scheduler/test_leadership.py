"""Any order of stops, deaths, lost answers and outages of the store: no two leaders in a term, and soon one again."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.leadership import (
    MOST_AHEAD,
    TERMS_PER_REVISION,
    Attempt,
    Away,
    Free,
    Held,
    Leadership,
    Outcome,
    Taken,
)
from shared.specs.ids import InstanceId

LEASE = 3.0
STEP = 0.1
A, B = InstanceId("scheduler-a"), InstanceId("scheduler-b")


@dataclass
class Store:
    """One key with a time to live, as the bus keeps it."""

    revision: int = 1000
    holder: InstanceId | None = None
    expires_at: float = 0.0
    away: bool = False

    def do(self, me: InstanceId, attempt: Attempt, now: float) -> Outcome:
        if self.away:
            return Away()
        if self.holder is not None and now >= self.expires_at:
            self.holder = None
        there = None if self.holder is None else self.revision
        if there == attempt.revision:
            self.revision += 1
            self.holder, self.expires_at = me, now + LEASE
            return Held(self.revision)
        return Free() if self.holder is None else Taken(self.holder, self.revision)


@dataclass
class World:
    """Schedulers that beat once a second, and an instance that repeats the latest term it has heard."""

    store: Store = field(default_factory=Store)
    now: float = 0.0
    nodes: dict[InstanceId, Leadership] = field(default_factory=dict)
    stopped: set[InstanceId] = field(default_factory=set)
    pending: dict[InstanceId, Outcome] = field(default_factory=dict)
    inboxes: dict[InstanceId, list[tuple[InstanceId, int]]] = field(default_factory=dict)
    leaders: dict[int, set[InstanceId]] = field(default_factory=dict)  # by term
    latest_term: int = 0
    lose_answers: bool = False
    lives: int = 0
    most_at_once: int = 0

    def start(self, name: InstanceId) -> None:
        self.lives += 1
        instance = InstanceId(f"{name}-{self.lives}")
        self.nodes[instance] = Leadership(instance, LEASE, self.now)
        self.inboxes[instance] = []

    def kill(self, instance: InstanceId) -> None:
        self.stopped.discard(instance)
        self.pending.pop(instance, None)
        del self.nodes[instance], self.inboxes[instance]

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            self.look()  # as who has just woken up acts before it hears anything
            if round(self.now / STEP) % 10 == 0:
                self.beat()
            for instance in [i for i in self.nodes if i not in self.stopped]:
                self.run(instance)
            self.look()

    def beat(self) -> None:
        for instance, node in self.nodes.items():
            if instance not in self.stopped:
                term = node.term if node.leads(self.now) else 0
                for inbox in self.inboxes.values():
                    inbox.append((instance, term))
        for inbox in self.inboxes.values():
            inbox.append((InstanceId("prefill"), self.latest_term))

    def run(self, instance: InstanceId) -> None:
        """What a scheduler does in one turn of its loop. The store's answer comes a turn later."""
        node, inbox = self.nodes[instance], self.inboxes[instance]
        for who, term in inbox:
            node.heard(who, term, self.now, is_scheduler=who.startswith("scheduler"))
        inbox.clear()
        if (asked := self.pending.pop(instance, None)) is not None:
            node.answered(asked, self.now)
        if (attempt := node.attempt(self.now)) is not None:
            outcome = self.store.do(instance, attempt, self.now)
            self.pending[instance] = Away() if self.lose_answers else outcome

    def leading(self) -> list[InstanceId]:
        return [i for i, node in self.nodes.items() if i not in self.stopped and node.leads(self.now)]

    def look(self) -> None:
        leading = self.leading()
        self.most_at_once = max(self.most_at_once, len(leading))
        for instance in leading:
            self.leaders.setdefault(self.nodes[instance].term, set()).add(instance)
            self.latest_term = max(self.latest_term, self.nodes[instance].term)  # the instance has had a command


def world_of(*names: InstanceId) -> World:
    world = World()
    for name in names:
        world.start(name)
    return world


ACTIONS = ("pass", "stop", "resume", "kill", "start")
LOSSES = ("lose answers", "get answers")


def act(world: World, action: str, choice: random.Random) -> None:
    alive = sorted(world.nodes)
    match action:
        case "stop" if alive:
            world.stopped.add(choice.choice(alive))
        case "resume" if world.stopped:
            world.stopped.discard(choice.choice(sorted(world.stopped)))
        case "kill" if alive:
            world.kill(choice.choice(alive))
        case "start" if len(alive) < 3:
            world.start(choice.choice([A, B]))
        case "lose answers" | "get answers":
            world.lose_answers = action == "lose answers"
        case "away" | "back":
            world.store.away = action == "away"
    world.pass_time(choice.choice([0.1, 0.5, 1.0, 2.0, 4.0]))


def settle(world: World) -> None:
    """Faults are over."""
    world.store.away = world.lose_answers = False
    world.stopped.clear()
    if not world.nodes:
        world.start(A)
    world.pass_time(2 * LEASE)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=25), st.randoms(use_true_random=False))
def test_never_two_leaders_in_a_term_nor_at_a_time_and_soon_one_again(actions: list[str], choice: random.Random):
    world = world_of(A, B)
    for action in actions:
        act(world, action, choice)
    settle(world)
    assert world.most_at_once <= 1
    (leader,) = world.leading()
    terms = sorted(world.leaders)
    world.pass_time(4 * LEASE)
    assert world.leading() == [leader]
    assert sorted(world.leaders) == terms, "nobody took over from a leader that is well"
    assert all(len(instances) == 1 for instances in world.leaders.values())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from((*ACTIONS, *LOSSES)), max_size=25), st.randoms(use_true_random=False))
def test_no_two_share_a_term_that_the_store_gave(actions: list[str], choice: random.Random):
    """Who gets no answers goes on as if the store were away, until it hears of another: fenced, but beside that one."""
    world = world_of(A, B)
    for action in actions:
        act(world, action, choice)
    settle(world)
    (leader,) = world.leading()
    assert world.nodes[leader].term == max(world.leaders)
    given_by_the_store = [who for term, who in world.leaders.items() if term % TERMS_PER_REVISION == 0]
    assert all(len(who) == 1 for who in given_by_the_store)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from((*ACTIONS, *LOSSES, "away", "back")), max_size=25), st.randoms(use_true_random=False))
def test_whatever_happens_to_the_store_there_is_soon_one_leader_again(actions: list[str], choice: random.Random):
    world = world_of(A, B)
    for action in actions:
        act(world, action, choice)
    settle(world)
    (leader,) = world.leading()
    assert world.nodes[leader].term == max(world.leaders)
    world.pass_time(4 * LEASE)
    assert world.leading() == [leader]


def test_the_standby_leads_within_the_lease_when_the_leader_dies():
    world = world_of(A, B)
    world.pass_time(1.0)
    (leader,) = world.leading()
    first = world.nodes[leader].term
    world.kill(leader)
    world.pass_time(LEASE + LEASE / 12 + 2 * STEP)
    (successor,) = world.leading()
    assert world.nodes[successor].term > first


def test_a_leader_that_was_stopped_wakes_up_deposed():
    world = world_of(A, B)
    world.pass_time(1.0)
    (leader,) = world.leading()
    world.stopped.add(leader)
    world.pass_time(2 * LEASE)
    (successor,) = world.leading()
    world.stopped.clear()
    assert not world.nodes[leader].leads(world.now)
    world.pass_time(2 * LEASE)
    assert world.leading() == [successor]
    assert world.nodes[leader].term == 0


def test_a_single_leader_that_was_stopped_leads_again_in_a_later_term():
    world = world_of(A)
    world.pass_time(1.0)
    (leader,) = world.leading()
    first = world.nodes[leader].term
    world.stopped.add(leader)
    world.pass_time(2 * LEASE)
    world.stopped.clear()
    assert not world.nodes[leader].leads(world.now)
    world.pass_time(1.0)
    assert world.leading() == [leader]
    assert world.nodes[leader].term > first


def test_without_a_store_the_leader_goes_on_and_the_standby_waits():
    world = world_of(A, B)
    world.pass_time(1.0)
    before = world.leading()
    world.store.away = True
    for _ in range(100):
        world.pass_time(0.5)
        assert world.leading() == before
    assert len(world.leaders) == 1


def test_without_a_store_one_takes_over_from_a_leader_that_dies_and_gives_way_to_the_store_when_it_is_back():
    world = world_of(A, B)
    world.pass_time(1.0)
    (leader,) = world.leading()
    world.store.away = True
    world.kill(leader)
    world.pass_time(2 * LEASE)
    (successor,) = world.leading()
    world.start(A)
    world.pass_time(2 * LEASE)
    assert world.leading() == [successor]
    unsure = world.nodes[successor].term
    world.store.away = False
    world.pass_time(2 * LEASE)
    (last,) = world.leading()
    assert world.nodes[last].term > unsure


def test_without_any_store_one_of_two_leads():
    world = world_of(A, B)
    world.store.away = True
    world.pass_time(2 * LEASE)
    assert [instance.rpartition("-")[0] for instance in world.leading()] == [A]


def test_an_outage_of_the_bus_deposes_nobody():
    leader, standby = Leadership(A, LEASE, 0.0), Leadership(B, LEASE, 0.0)
    store, now = Store(), 0.0
    for node, name in ((leader, A), (standby, B)):
        attempt = node.attempt(now)
        assert attempt is not None
        node.answered(store.do(name, attempt, now), now)
    while now < 4 * LEASE:
        now += STEP
        leader.deaf(now)
        standby.deaf(now)
    assert leader.leads(now)
    assert not standby.leads(now)
    store.away = True  # and it is still away when the bus is back
    for node, name in ((standby, B), (leader, A)):
        attempt = node.attempt(now)
        assert attempt is not None
        node.answered(store.do(name, attempt, now), now)
    assert leader.leads(now)
    assert not standby.leads(now)


def test_a_leader_that_hears_of_a_later_term_takes_a_later_one_still():
    """Its own lease is intact: the term was of a time when the store was away."""
    world = world_of(A)
    world.pass_time(1.0)
    (leader,) = world.leading()
    world.latest_term = 10**6
    world.pass_time(2.0)
    assert world.leading() == [leader]
    assert world.nodes[leader].term == 10**6 + 1


@pytest.mark.parametrize("away", [False, True])
def test_no_instance_deposes_the_leader_however_late_a_term_it_claims(away: bool):
    world = world_of(A, B)
    world.pass_time(1.0)
    before = world.leading()
    world.store.away = away
    for claim in (2**64 - 1, *range(2**40, 2**40 + 100)):
        world.latest_term = claim
        for _ in range(3):
            world.pass_time(STEP)
            assert world.leading() == before


def test_whoever_claims_the_latest_of_terms_a_thousand_times_a_second_cannot_use_them_up():
    world = world_of(A)
    world.pass_time(1.0)
    (leader,) = world.leading()
    node, renewals = world.nodes[leader], 0
    for _ in range(100):
        before = node.term
        for _ in range(1000):
            node.heard(InstanceId("prefill-forger"), 2**64 - 1, world.now, is_scheduler=False)
        world.pass_time(STEP)
        renewals += node.term != before
    assert renewals < 100 * STEP / LEASE * 4 + 2
    assert node.term < 1000 * TERMS_PER_REVISION + renewals * (MOST_AHEAD + 2) + 100 * TERMS_PER_REVISION


def test_a_new_leader_goes_beyond_what_instances_know_though_the_store_has_forgotten():
    world = world_of(A)
    world.pass_time(1.0)
    known = world.latest_term
    for instance in list(world.nodes):
        world.kill(instance)
    world.store = Store(revision=0)
    world.start(B)
    world.pass_time(2 * LEASE)
    (leader,) = world.leading()
    assert world.nodes[leader].term > known
