import pytest
import torch

from shared.engine.device import chosen_device, chosen_dtype
from shared.engine.pieces import Draw, NonFiniteLogits, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.settings import BadSetting
from tests.generation import GREEDY, generate

CURSED = 99


@pytest.fixture
def cursed_engine(copy_of) -> Engine:
    """Its embedding of one token is NaN."""
    folder = copy_of("llama", lambda tensors: tensors["model.embed_tokens.weight"][CURSED].fill_(torch.nan))
    return Engine.load(EngineSettings(model=str(folder), blocks=32))


def prompt_piece(tokens: list[int], block: int) -> Piece:
    return Piece(tokens, 0, [block], Draw(GREEDY, tokens, []))


def test_pieces_without_a_draw_answer_nothing(load_engine):
    engine = load_engine("llama")
    first, second = Piece([7, 8], 0, [0], None), prompt_piece([9], 1)
    assert engine.step([first]) == [None]
    none, drawn = engine.step([first, second])
    assert none is None
    assert drawn is not None
    assert drawn.token == generate(engine, [[9]], 1)[0][0]


def test_results_come_in_the_order_of_the_pieces(load_engine):
    engine = load_engine("llama")
    prompts = [[7, 8, 9], [10], [11] * 9, [12, 13]]
    drawn = engine.step([prompt_piece(prompt, block) for block, prompt in enumerate(prompts)])
    assert [d.token for d in drawn if d] == [answer[0] for answer in generate(engine, prompts, 1)]


@pytest.mark.parametrize("token", [-1, 262])
def test_a_token_outside_the_vocabulary_is_refused(token: int, load_engine):
    with pytest.raises(ValueError, match=f"token id {token} is outside the vocabulary of 262"):
        load_engine("llama").step([prompt_piece([7, token], 0)])


def test_pieces_with_unusable_logits_are_named_and_the_others_can_go_on(cursed_engine: Engine):
    pieces = [prompt_piece([7, 8], 0), prompt_piece([7, CURSED, 8], 1), prompt_piece([9], 2)]
    with pytest.raises(NonFiniteLogits) as raised:
        cursed_engine.step(pieces)
    assert raised.value.pieces == (1,)
    again = cursed_engine.step([pieces[0], pieces[2]])
    assert [d.token for d in again if d] == [a[0] for a in generate(cursed_engine, [[7, 8], [9]], 1)]


def test_the_longest_sequence_is_the_least_of_model_setting_and_cache(load_engine):
    assert load_engine("llama").max_model_tokens == 512
    assert load_engine("llama", max_model_tokens=100).max_model_tokens == 100
    assert load_engine("llama", blocks=8).max_model_tokens == 128


def test_a_sequence_can_fill_the_model_to_its_last_position(load_engine):
    for family in ("llama", "opt", "gpt2"):
        prompt = [6 + i % 250 for i in range(511)]
        assert len(generate(load_engine(family), [prompt], 1)[0]) == 1


def test_devices_and_dtypes_that_cannot_be_are_refused():
    with pytest.raises(BadSetting, match="'tpu0': it must be cpu, cuda"):
        chosen_device("tpu0")
    with pytest.raises(BadSetting, match="'half': it must be auto"):
        chosen_dtype("half", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(BadSetting, match="sees no CUDA device"):
            chosen_device("cuda")


def test_a_cache_without_room_for_a_block_is_refused(model_folder):
    with pytest.raises(BadSetting, match="1000 bytes for the KV cache hold no block of 8192 bytes"):
        Engine.load(EngineSettings(model=str(model_folder("llama")), cache_bytes=1000))
