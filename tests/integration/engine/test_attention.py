"""Every kind of attention gives what its plain twin gives."""

import pytest
import torch

from shared.engine.attention.flash import FlashAttention
from shared.engine.attention.gathered import QUERY_TILE, GatheredAttention
from shared.engine.attention.in_place import InPlaceAttention
from shared.engine.attention.paged import PagedAttention
from shared.engine.attention.reference import ReferenceAttention
from shared.engine.batch import Batch, lay_out, padded_tables
from shared.engine.cpu.kernels import kernels_for
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


class KernelAttention(PagedAttention):
    """What captured decode steps compute with, for steps of single tokens."""

    def prepare(self, batch: Batch) -> None:
        self._positions = self.to_device(batch.positions).int()
        self._tables = self.to_device(padded_tables(batch.spans)).int()

    def context(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        from shared.engine.attention.decode_kernel import DecodeKernel  # needs Triton

        kernel = DecodeKernel(self.cache, self.heads, len(self._positions), splits=3)
        return kernel(layer, heads, self._positions, self._tables)


def contexts(
    kind: type[PagedAttention],
    step: list[tuple[int, int]],
    model: ModelSpec,
    dtype: torch.dtype,
    device: str,
    computing: torch.dtype | None = None,
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
    heads = torch.randn(rows, model.heads + 2 * model.kv_heads, model.head_dim).to(computing or dtype).to(device)
    attention = kind(cache, model) if kind is not InPlaceAttention else in_place(cache, model)
    with torch.inference_mode():
        attention.begin(lay_out(pieces, BLOCK_TOKENS))
        return attention.attend(1, heads).float().cpu()


def in_place(cache: KvCache, model: ModelSpec) -> InPlaceAttention:
    kernels = kernels_for(model, torch.device("cpu"), torch.float32)
    if kernels is None:
        pytest.skip("no kernels for this CPU, or no compiler")
    return InPlaceAttention(cache, model, kernels)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("shape", [(4, 2, 32), (6, 1, 64), (3, 3, 256)])
@pytest.mark.parametrize(
    ("cached", "computed"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_attention_in_place_equals_the_plain_twin(
    step: str, shape: tuple[int, int, int], cached: torch.dtype, computed: torch.dtype
):
    model = spec(*shape)
    got = contexts(InPlaceAttention, STEPS[step], model, cached, "cpu", computed)
    expected = contexts(ReferenceAttention, STEPS[step], model, cached, "cpu", computed)
    tolerance = 1e-4 if cached == torch.float32 else 0.02
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


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


def test_a_short_cache_may_be_computed_with_in_float32():
    model = spec(4, 2, 16)
    kinds = (GatheredAttention, ReferenceAttention)
    got, expected = (contexts(k, STEPS["everything"], model, torch.bfloat16, "cpu", torch.float32) for k in kinds)
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


@needs_cuda
@pytest.mark.parametrize("step", ["one sequence", "first token of all", "equal lengths", "mixed lengths"])
@pytest.mark.parametrize("shape", [(4, 2, 16), (8, 1, 64), (12, 12, 80), (32, 8, 128)])
def test_the_decode_kernel_equals_the_plain_twin(step: str, shape: tuple[int, int, int]):
    model = spec(*shape)
    got = contexts(KernelAttention, STEPS[step], model, torch.bfloat16, "cuda")
    expected = contexts(ReferenceAttention, STEPS[step], model, torch.bfloat16, "cuda")
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
