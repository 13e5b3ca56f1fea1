from services.gateway.answer import sampling_of, seed_of
from services.gateway.openai import Options


def test_the_first_choice_has_the_calls_seed_and_the_others_their_own() -> None:
    seeds = [seed_of(42, number) for number in range(100)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_of(42, number) for number in range(100)]


def test_a_negative_seed_is_brought_into_range() -> None:
    assert 0 <= seed_of(-1, 0) < 2**63
    assert 0 <= seed_of(-(2**63), 3) < 2**63


def test_the_models_end_tokens_end_the_answer_unless_they_are_ignored() -> None:
    options = Options(model="m", stop_token_ids=(5,))
    assert sampling_of(options, 8, 0, (2, 3)).stop_token_ids == (2, 3, 5)
    ignoring = Options(model="m", stop_token_ids=(5,), ignore_eos=True)
    assert sampling_of(ignoring, 8, 0, (2, 3)).stop_token_ids == (5,)
