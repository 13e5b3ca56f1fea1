from shared.policy.finish import finish_of
from shared.specs.sampling import Sampling


def test_a_stop_token_ends_the_answer():
    assert finish_of(Sampling(max_tokens=9, stop_token_ids=(2,)), token=2, answer_tokens=1) == "stop"


def test_the_last_allowed_token_ends_it_by_length():
    sampling = Sampling(max_tokens=3, stop_token_ids=(2,))
    assert [finish_of(sampling, token=5, answer_tokens=n) for n in (1, 2, 3)] == [None, None, "length"]


def test_without_stop_tokens_only_the_length_ends_it():
    assert finish_of(Sampling(max_tokens=9), token=2, answer_tokens=1) is None
