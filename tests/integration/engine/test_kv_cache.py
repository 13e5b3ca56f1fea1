import numpy as np
import torch

from shared.engine.kv_cache import KvCache
from shared.engine.step import Engine
from tests.generation import GREEDY, advance, begin, generate

PROMPTS = [[6 + (i * 13 + length) % 250 for i in range(length)] for length in (33, 7, 48)]


def copy_blocks(source: KvCache, target: KvCache, pairs: list[tuple[int, int]]) -> None:
    for from_block, to_block in pairs:
        target.view(to_block, 1)[:] = source.view(from_block, 1)


def test_a_run_of_blocks_is_one_writable_piece_of_bytes(load_engine):
    cache = load_engine("llama").cache
    view = cache.view(3, 5)
    assert isinstance(view, np.ndarray)
    assert (view.dtype, view.shape) == (np.uint8, (5 * cache.block_bytes,))
    assert view.flags.c_contiguous
    assert view.flags.writeable
    assert view.ctypes.data - cache.view(0, 1).ctypes.data == 3 * cache.block_bytes
    assert cache.block_bytes == 2 * 2 * 16 * 2 * 16 * 4  # layers, key and value, tokens, heads, head size, float32


def test_scratch_memory_is_none_of_the_pool(load_engine):
    cache = load_engine("llama").cache
    scratch = cache.scratch(1000)
    assert scratch.shape == (1000,)
    assert not np.shares_memory(scratch, cache.view(0, cache.blocks))


def test_caches_of_one_shape_and_dtype_have_one_format(load_engine):
    formats = [
        load_engine("llama").kv_format,
        load_engine("mistral", blocks=8).kv_format,
        load_engine("llama", dtype="bfloat16").kv_format,
        load_engine("llama", block_tokens=32).kv_format,
        load_engine("qwen3").kv_format,
    ]
    assert formats[0] == formats[1]
    assert len(set(formats)) == 4


def test_decoding_goes_on_in_another_engine_from_copied_blocks(load_engine, model_folder):
    prefill, decode = load_engine("llama"), load_engine("llama", blocks=64)
    generations = begin(prefill, PROMPTS, [GREEDY] * 3, 20)
    advance(prefill, generations)
    free = list(range(63, -1, -1))
    for generation in generations:
        used = -(-generation.computed // prefill.block_tokens)
        here, generation.blocks = generation.blocks[:used], [free.pop() for _ in generation.blocks]
        copy_blocks(prefill.cache, decode.cache, list(zip(here, generation.blocks, strict=False)))
    for _ in range(19):
        advance(decode, generations)
    assert [g.generated for g in generations] == generate(prefill, PROMPTS, 20)


def test_what_an_earlier_owner_left_in_a_block_harms_nobody(load_engine):
    expected = generate(load_engine("llama"), PROMPTS, 40)
    engine: Engine = load_engine("llama", blocks=65)
    engine.cache.pool.fill_(torch.nan)
    assert generate(engine, PROMPTS, 40, chunk=10) == expected
    engine.cache.pool.fill_(torch.inf)
    assert generate(engine, PROMPTS, 40) == expected


def test_the_number_of_blocks_follows_from_the_memory(load_engine):
    assert load_engine("llama", blocks=None, cache_bytes=100_000).blocks == 100_000 // 8192
    assert load_engine("llama", blocks=None).blocks == (512 << 20) // 8192
