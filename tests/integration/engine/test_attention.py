"""Every kind of attention gives what its plain twin gives."""

import pytest
import torch

from shared.engine.attention.flash import FlashAttention
from shared.engine.attention.gathered import QUERY_TILE, GatheredAttention
from shared.engine.attention.paged import PagedAttention
from shared.engine.attention.reference import ReferenceAttention
from shared.engine.batch import lay_out
from shared.engine.kv_cache import KvCache
from shared.engine.pieces import Piece
from shared.specs.model import ModelSpec
from shared.specs.model_config import parse_model_spec

BLOCK_TOKENS = 16
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# (new tokens, tokens already in the cache) of each piece of a step
STEPS = {
    "one sequence": [(1, 37)],
    "first token of all": [(1, 0)],
    "equal lengths": [(1, 31), (1, 31)],
    "mixed lengths": [(1, 0), (1, 15), (1, 16), (1, 37), (1, 700)],
    "prompts": [(5, 0), (16, 0), (40, 0)],
    "chunks": [(5, 11), (QUERY_TILE + 9, 30)],
    "everything": [(1, 18), (7, 0), (1, 3), (9, 20), (1, 500)],
}


def spec(heads: int, kv_heads: int, head_dim: int) -> ModelSpec:
    return parse_model_spec(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "intermediate_size": 64,
            "vocab_size": 64,
            "max_position_embeddings": 1024,
        }
    )


def contexts(
    kind: type[PagedAttention], step: list[tuple[int, int]], model: ModelSpec, dtype: torch.dtype, device: str
) -> torch.Tensor:
    """Run layer 1 of one step over a cache of random earlier keys and values."""
    torch.manual_seed(3)
    cache = KvCache(model, 128, BLOCK_TOKENS, dtype, torch.device(device))
    cache.pool.copy_(torch.randn(cache.pool.shape))
    free = torch.randperm(128).tolist()
    pieces = []
    for new, earlier in step:
        count = -(-(new + earlier) // BLOCK_TOKENS)
        blocks, free = free[:count], free[count:]
        pieces.append(Piece([0] * new, earlier, blocks, None))
    rows = sum(new for new, _ in step)
    heads = torch.randn(rows, model.heads + 2 * model.kv_heads, model.head_dim).to(dtype).to(device)
    attention = kind(cache, model)
    with torch.inference_mode():
        attention.begin(lay_out(pieces, BLOCK_TOKENS))
        return attention.attend(1, heads).float().cpu()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(4, 2, 16), (6, 1, 8), (3, 3, 32)])
def test_gathered_attention_equals_the_plain_twin(step: str, shape: tuple[int, int, int]):
    model = spec(*shape)
    got = contexts(GatheredAttention, STEPS[step], model, torch.float32, "cpu")
    expected = contexts(ReferenceAttention, STEPS[step], model, torch.float32, "cpu")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gathered_attention_in_bfloat16_stays_near_the_plain_twin():
    model = spec(4, 2, 16)
    got = contexts(GatheredAttention, STEPS["everything"], model, torch.bfloat16, "cpu")
    expected = contexts(ReferenceAttention, STEPS["everything"], model, torch.bfloat16, "cpu")
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@needs_cuda
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(4, 2, 16), (8, 1, 64), (4, 4, 128)])
@pytest.mark.parametrize("kind", [GatheredAttention, FlashAttention])
def test_attention_on_a_gpu_equals_the_plain_twin(kind: type[PagedAttention], step: str, shape: tuple[int, int, int]):
    model = spec(*shape)
    got = contexts(kind, STEPS[step], model, torch.bfloat16, "cuda")
    expected = contexts(ReferenceAttention, STEPS[step], model, torch.bfloat16, "cuda")
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
