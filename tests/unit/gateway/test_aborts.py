from services.gateway.aborts import Aborts
from shared.messages.requests import AbortRequest
from shared.messages.tokens import Finish, RequestInterrupted, TokenRow
from shared.specs.ids import RequestId

REQUEST = RequestId("call-0")


def row(attempt: int = 0, finish: Finish | None = None) -> TokenRow:
    return TokenRow(request=REQUEST, attempt=attempt, index=0, tokens=(), finish=finish)


def test_an_abort_is_repeated_each_second_five_times_in_all() -> None:
    aborts = Aborts()
    aborts.begin(REQUEST, 2, now=0.0)
    sent = [aborts.due(now) for now in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    assert [len(messages) for messages in sent] == [1, 0, 1, 1, 1, 1, 0, 0]
    assert sent[0] == [AbortRequest(request=REQUEST, attempt=2)]


def test_it_ends_when_the_end_is_seen() -> None:
    for end in (row(finish="aborted"), RequestInterrupted(request=REQUEST, attempt=0, reason="")):
        aborts = Aborts()
        aborts.begin(REQUEST, 0, now=0.0)
        aborts.see(end, now=0.1)
        assert aborts.due(10.0) == []


def test_the_end_of_an_older_attempt_is_not_the_end() -> None:
    aborts = Aborts()
    aborts.begin(REQUEST, 1, now=0.0)
    aborts.see(row(attempt=0, finish="aborted"), now=0.1)
    assert aborts.due(0.2) == [AbortRequest(request=REQUEST, attempt=1)]


def test_a_stray_token_begins_an_abort_of_its_attempt() -> None:
    aborts = Aborts()
    aborts.see(row(attempt=3), now=0.0)
    aborts.see(row(attempt=3), now=0.0)
    assert aborts.due(0.0) == [AbortRequest(request=REQUEST, attempt=3)]
