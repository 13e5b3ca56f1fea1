from hypothesis import given
from hypothesis import strategies as st

from shared.messages.codec import encode
from shared.messages.sealed import seal
from shared.messages.tokens import ResumedTokens, ResumeTokens, TokenLogprobs, Want
from shared.policy.token_log import MOST_RESUMED_NUMBERS, Recipient, TokenLog
from shared.specs.ids import InstanceId, RequestId

ME = InstanceId("decode-1")
GATEWAY, OTHER = (Recipient(InstanceId(f"gateway-{number}"), bytes([number]) * 32) for number in (1, 2))
MAX_PAYLOAD_BYTES = 8 << 20  # of deploy/nats.conf
R, S = RequestId("r"), RequestId("s")


def ask(log: TokenLog, request: RequestId, index: int, attempt: int = 0, gateway: Recipient = GATEWAY):
    want = Want(request=request, attempt=attempt, next_index=index)
    answer, _ = log.resume(ResumeTokens(gateway=gateway.gateway, wants=(want,)))
    return answer.rows


def test_a_step_is_one_batch_per_gateway_with_a_running_number():
    log = TokenLog(ME)
    for request, gateway in ((R, GATEWAY), (S, GATEWAY), (RequestId("t"), OTHER)):
        log.begin(request, 0, gateway, start=0)
        log.tell(request, 7, None, None)
    first = dict(log.batches())
    assert [row.request for row in first[GATEWAY].rows] == [R, S]
    assert len(first[OTHER].rows) == 1
    log.tell(R, 8, None, None)
    (gateway, batch), *rest = log.batches()
    assert (gateway, batch.step, batch.rows[0].index, rest) == (GATEWAY, 1, 1, [])


def test_what_was_lost_is_told_again_from_the_wanted_index():
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=3)
    for token in (10, 11, 12):
        log.tell(R, token, TokenLogprobs(token=-0.5), None)
    (row,) = ask(log, R, 4)
    assert (row.index, row.tokens, len(row.logprobs)) == (4, (11, 12), 2)


def test_a_token_told_by_another_instance_is_known_but_not_told_again():
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=0)
    log.note(R, 5, None)
    assert log.batches() == []
    assert ask(log, R, 0)[0].tokens == (5,)


def test_a_request_that_waits_is_known_with_nothing_new():
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=2)
    (row,) = ask(log, R, 2)
    assert (row.index, row.tokens, row.finish) == (2, (), None)


def test_nothing_is_told_of_another_attempt_or_to_another_gateway():
    log = TokenLog(ME)
    log.begin(R, 1, GATEWAY, start=0)
    assert ask(log, R, 0, attempt=0) == ()
    assert ask(log, R, 0, attempt=1, gateway=OTHER) == ()


def test_an_abort_is_told_as_an_end_without_tokens():
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=0)
    log.tell(R, 1, None, None)
    log.batches()
    log.end(R, "aborted", now=0.0)
    ((_, batch),) = log.batches()
    assert (batch.rows[0].tokens, batch.rows[0].index, batch.rows[0].finish) == ((), 1, "aborted")


def test_an_end_is_remembered_for_a_while_and_then_forgotten():
    log = TokenLog(ME, keep_seconds=60)
    log.begin(R, 0, GATEWAY, start=0)
    log.tell(R, 1, None, "stop")
    log.end(R, "stop", now=0.0)
    log.expire(now=59.0)
    assert ask(log, R, 0)[0].finish == "stop"
    log.expire(now=61.0)
    assert ask(log, R, 0) == ()
    assert len(log) == 0


def test_a_request_is_live_until_it_ends_or_somebody_else_answers_for_it():
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=0)
    log.begin(S, 0, GATEWAY, start=0)
    assert log.live == 2
    log.end(R, "stop", now=0.0)
    log.forget(S, 0)
    assert log.live == 0


def test_no_more_ended_requests_are_remembered_than_allowed():
    log = TokenLog(ME, most_ended=2)
    for name in "abcd":
        log.begin(RequestId(name), 0, GATEWAY, start=0)
        log.end(RequestId(name), "stop", now=0.0)
    log.expire(now=0.0)
    assert [bool(ask(log, RequestId(name), 0)) for name in "abcd"] == [False, False, True, True]


def test_a_forgotten_request_is_unknown_unless_a_newer_attempt_took_its_place():
    log = TokenLog(ME)
    log.begin(R, 1, GATEWAY, start=0)
    log.forget(R, 0)
    assert ask(log, R, 0, attempt=1)
    log.forget(R, 1)
    assert ask(log, R, 0, attempt=1) == ()


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 30))
def test_whatever_batches_are_lost_the_resumed_row_completes_the_answer(delivered: list[bool], asked_after: int):
    log = TokenLog(ME)
    log.begin(R, 0, GATEWAY, start=0)
    got: list[int] = []
    for token, arrives in enumerate(delivered):
        log.tell(R, token, None, None)
        for _, batch in log.batches():
            row = batch.rows[0]
            if arrives and row.index == len(got):
                got.extend(row.tokens)
        if token == asked_after:
            got.extend(ask(log, R, len(got))[0].tokens)
    got.extend(ask(log, R, len(got))[0].tokens)
    assert got == list(range(len(delivered)))


def test_an_answer_is_for_whom_the_request_was_begun_for_whoever_asks():
    """Somebody has begun a request in this gateway's name, and asks for another's with it."""
    log, forger = TokenLog(ME), Recipient(GATEWAY.gateway, bytes(32))
    log.begin(R, 0, GATEWAY, start=0)
    log.begin(S, 0, forger, start=0)
    for request in (R, S):
        log.tell(request, 7, None, None)
    assert {to: [row.request for row in batch.rows] for to, batch in log.batches()} == {GATEWAY: [R], forger: [S]}
    wants = [Want(request=request, attempt=0, next_index=0) for request in (S, R)]
    for first, to in ((S, forger), (R, GATEWAY)):
        asked = ResumeTokens(gateway=GATEWAY.gateway, wants=tuple(wants))
        answer, recipient = log.resume(asked)
        assert ([row.request for row in answer.rows], recipient) == ([first], to)
        wants.reverse()


def test_an_answer_is_for_nobody_if_nothing_is_known():
    asked = ResumeTokens(gateway=GATEWAY.gateway, wants=(Want(request=R, attempt=0, next_index=0),))
    assert TokenLog(ME).resume(asked) == (ResumedTokens(source=ME, rows=()), None)


def test_an_answer_too_long_for_one_message_is_told_in_parts_and_the_end_comes_with_the_last():
    """After a long outage, with many alternatives, in the numbers that take most bytes."""
    log, requests, tokens = TokenLog(ME), [RequestId(f"request-{number:032}") for number in range(256)], 40
    top = tuple((2**31 - 1 - rank, -1 / 3) for rank in range(20))
    for request in requests:
        log.begin(request, 0, GATEWAY, start=5)
        for number in range(tokens):
            finish = "length" if number == tokens - 1 else None
            log.tell(request, 2**31 - 1 - number, TokenLogprobs(token=-1 / 3, top=top), finish)
    missed = {request: 5 for request in requests}
    rounds = 0
    while missed:
        wants = tuple(Want(request=request, attempt=0, next_index=index) for request, index in missed.items())
        answer, to = log.resume(ResumeTokens(gateway=GATEWAY.gateway, wants=wants))
        assert to == GATEWAY
        assert len(encode(seal(answer, GATEWAY.seal_key))) < MAX_PAYLOAD_BYTES / 2
        assert [(row.request, row.index) for row in answer.rows] == list(missed.items()), "it has them all"
        for row in answer.rows:
            missed[row.request] += len(row.tokens)
            assert len(row.logprobs) == len(row.tokens)
            assert (row.finish == "length") is (missed[row.request] == 5 + tokens)
        missed = {request: index for request, index in missed.items() if index < 5 + tokens}
        rounds += 1
    assert rounds == -(-len(requests) * tokens * (3 + 2 * len(top)) // MOST_RESUMED_NUMBERS)
