import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shared.kv.ledger import MOVES, TOUCHED, Ledger, OutOfBlocks, Owner, State, WrongState
from shared.specs.ids import RequestId

A, B = Owner(RequestId("a"), 0), Owner(RequestId("b"), 0)


def test_taking_more_than_is_free_takes_nothing_and_says_the_numbers():
    ledger = Ledger(4)
    ledger.take(A, 3, State.RESERVED)
    with pytest.raises(OutOfBlocks, match="2 KV blocks wanted, 1 free"):
        ledger.take(B, 2, State.RESERVED)
    assert ledger.free == 1
    assert B not in ledger


def test_blocks_of_a_request_are_one_run_where_the_pool_allows_it():
    ledger = Ledger(10)
    ledger.take(A, 3, State.RESERVED)
    ledger.take(B, 2, State.RESERVED)
    ledger.release(A)
    assert ledger.take(Owner(RequestId("c"), 0), 5, State.RESERVED) == [5, 6, 7, 8, 9]
    assert ledger.take(Owner(RequestId("d"), 0), 2, State.RESERVED) == [0, 1]


def test_blocks_released_in_the_middle_of_a_transfer_are_free_only_when_it_has_ended():
    ledger = Ledger(2)
    ledger.take(A, 2, State.COMPUTING)
    ledger.move(A, State.HELD)
    ledger.move(A, State.PULLING)
    assert not ledger.release(A)
    assert ledger.free == 0
    assert not ledger.move(A, State.HELD)
    assert ledger.free == 2


def test_blocks_are_counted_by_state_and_states_without_any_are_left_out():
    ledger = Ledger(8)
    assert ledger.counts() == ()
    ledger.take(A, 3, State.RESERVED)
    ledger.take(B, 2, State.COMPUTING)
    assert dict(ledger.counts()) == {"reserved": 3, "computing": 2}


def test_releasing_twice_changes_nothing():
    ledger = Ledger(2)
    ledger.take(A, 1, State.RESERVED)
    assert ledger.release(A)
    assert not ledger.release(A)
    assert ledger.free == 2


def test_an_older_attempt_cannot_free_the_blocks_of_a_newer_one():
    ledger = Ledger(2)
    ledger.take(Owner(RequestId("a"), 1), 1, State.RESERVED)
    assert not ledger.release(A)
    assert ledger.free == 1


def test_a_lease_ends_unless_it_is_renewed_and_never_in_the_middle_of_a_transfer():
    ledger = Ledger(4)
    for owner in (A, B):
        ledger.take(owner, 1, State.COMPUTING)
        ledger.move(owner, State.HELD)
        ledger.lease(owner, until=10.0)
    ledger.lease(B, until=20.0)
    assert ledger.expired(now=10.0) == [A]
    ledger.move(A, State.PULLING)
    assert ledger.expired(now=15.0) == []
    assert ledger.expired(now=20.0) == [B]


def test_a_move_that_the_states_do_not_know_is_refused():
    ledger = Ledger(1)
    ledger.take(A, 1, State.RESERVED)
    with pytest.raises(WrongState):
        ledger.move(A, State.PULLING)


def test_only_a_running_owner_grows():
    ledger = Ledger(4)
    ledger.take(A, 1, State.RESERVED)
    with pytest.raises(WrongState):
        ledger.grow(A, 1)
    ledger.move(A, State.RUNNING)
    ledger.grow(A, 2)
    with pytest.raises(OutOfBlocks):
        ledger.grow(A, 2)
    assert len(ledger.take(B, 1, State.RESERVED)) == 1


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Takes, moves, leases and releases in any order, old attempts and repeats included."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(16)
        self.touched: dict[Owner, set[int]] = {}  # what a step or a transfer may still write or read

    @rule(target=owners, request=st.sampled_from("abcdef"), attempt=st.integers(0, 2))
    def name(self, request: str, attempt: int) -> Owner:
        return Owner(RequestId(request), attempt)

    @rule(owner=owners, count=st.integers(1, 6), state=st.sampled_from([State.COMPUTING, State.RESERVED]))
    def take(self, owner: Owner, count: int, state: State) -> None:
        free_before = self.ledger.free
        try:
            blocks = self.ledger.take(owner, count, state)
        except (OutOfBlocks, WrongState):
            assert self.ledger.free == free_before
            return
        assert not set(blocks) & set().union(*self.touched.values())
        self._note(owner)

    @rule(owner=owners, to=st.sampled_from(list(State)))
    def move(self, owner: Owner, to: State) -> None:
        holding = self.ledger.get(owner)
        if holding is None or (holding.state, to) not in MOVES:
            with pytest.raises(WrongState):
                self.ledger.move(owner, to)
            return
        doomed = holding.doomed
        assert self.ledger.move(owner, to) == (not doomed or to in TOUCHED)
        self._note(owner)

    @rule(owner=owners)
    def release(self, owner: Owner) -> None:
        self.ledger.release(owner)

    @rule(owner=owners)
    def grow(self, owner: Owner) -> None:
        holding = self.ledger.get(owner)
        if holding is not None and holding.state is State.RUNNING and self.ledger.free:
            self.ledger.grow(owner, 1)

    def _note(self, owner: Owner) -> None:
        holding = self.ledger.get(owner)
        if holding is not None and holding.state in TOUCHED:
            self.touched[owner] = {int(block) for block in holding.blocks}
        else:
            self.touched.pop(owner, None)

    @invariant()
    def every_block_is_free_or_owned_once(self) -> None:
        self.ledger.check()
        assert self.ledger.stranded() == 0

    @invariant()
    def nothing_is_free_that_may_still_be_touched(self) -> None:
        for owner, blocks in self.touched.items():
            holding = self.ledger.get(owner)
            assert holding is not None
            assert blocks <= {int(block) for block in holding.blocks}

    def teardown(self) -> None:
        """Everybody gives up and every transfer ends: the pool is whole again."""
        for holding in self.ledger:
            if not self.ledger.release(holding.owner):
                ends = next(to for frm, to in MOVES if frm is holding.state and to not in TOUCHED)
                self.ledger.move(holding.owner, ends)
        assert self.ledger.free == 16


AnyOrderOfEvents.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
