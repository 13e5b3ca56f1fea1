"""The same engine on a GPU. Attention kernels are compared in test_attention."""

from pathlib import Path

import pytest
import torch

from shared.engine.attention.flash import FlashAttention
from shared.engine.device import chosen_device
from shared.engine.noise import GumbelNoise, stream_key
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.sampling import Sampling
from shared.specs.settings import BadSetting
from tests.generation import GREEDY, advance, begin, generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

PROMPTS = [[6 + (i * 13 + length) % 250 for i in range(length)] for length in (33, 7, 48, 1)]
SAMPLED = [
    Sampling(max_tokens=100, seed=n, temperature=0.8, top_p=0.9, top_k=30 * (n % 2), min_p=0.01, frequency_penalty=0.2)
    for n in range(4)
]


@pytest.fixture(scope="session")
def exact_products():
    """TF32 would round what is compared with a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3", "opt", "opt_post_norm", "gpt2"])
def test_float32_tokens_on_a_gpu_are_those_of_a_cpu(family: str, load_engine):
    cpu, gpu = load_engine(family), load_engine(family, device="cuda", dtype="float32")
    assert generate(gpu, PROMPTS, 32) == generate(cpu, PROMPTS, 32)
    assert generate(gpu, PROMPTS, 16, chunk=9) == generate(cpu, PROMPTS, 16)
    assert generate(gpu, PROMPTS, 32, SAMPLED) == generate(cpu, PROMPTS, 32, SAMPLED)


def test_bfloat16_runs_on_flash_attention_near_float32(load_engine):
    exact, rounded = load_engine("llama"), load_engine("llama", device="cuda")
    assert isinstance(rounded._attention, FlashAttention)
    asked = [Sampling(max_tokens=9, temperature=0.0, logprobs=1)] * len(PROMPTS)
    results = []
    for engine in (exact, rounded):
        generations = begin(engine, PROMPTS, asked, 2)
        advance(engine, generations)
        drawn = [generation.drawn[0].logprobs for generation in generations]
        results.append([logprobs.token for logprobs in drawn if logprobs])
    torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[0]), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gpt2"])
@pytest.mark.parametrize("sequences", [1, 3, 4])
def test_captured_decode_steps_give_what_uncaptured_ones_give(family: str, sequences: int, load_engine):
    plain = load_engine(family, device="cuda", dtype="bfloat16", blocks=255)
    captured = load_engine(family, device="cuda", dtype="bfloat16", decode_batch=4)
    assert captured.no_graphs_because == ""
    asked = [Sampling(max_tokens=99, temperature=0.0, logprobs=1)] * sequences
    steps = [begin(engine, PROMPTS[:sequences], asked, 40) for engine in (plain, captured)]
    for _ in range(20):  # over the edge of a block
        results = []
        for engine, generations in zip((plain, captured), steps, strict=True):
            advance(engine, generations)
            results.append([drawn.logprobs.token for g in generations if (drawn := g.drawn[-1]).logprobs])
        torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[0]), rtol=0.1, atol=0.1)
        for ours, theirs in zip(steps[1], steps[0], strict=True):
            ours.generated[-1] = theirs.generated[-1]  # a near tie may fall to either side


def test_noise_has_the_same_bits_on_a_gpu():
    keys = [stream_key(seed, 5) for seed in range(8)]
    cpu, gpu = (GumbelNoise(5000, torch.device(device)).rows(keys) for device in ("cpu", "cuda"))
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-5, atol=1e-5)
    assert torch.equal(gpu.cpu().argmax(-1), cpu.argmax(-1))


def test_blocks_are_gpu_memory_that_another_process_can_be_given(load_engine):
    cache = load_engine("llama", device="cuda").cache
    view = cache.view(3, 2)
    assert (view.device.type, view.dtype, view.shape) == ("cuda", torch.uint8, (2 * cache.block_bytes,))
    assert view.is_contiguous()
    assert view.data_ptr() - cache.view(0, 1).data_ptr() == 3 * cache.block_bytes


def test_decoding_goes_on_in_another_engine_from_copied_blocks(load_engine):
    prefill, decode = load_engine("llama", device="cuda"), load_engine("llama", device="cuda", blocks=200)
    generations = begin(prefill, PROMPTS, [GREEDY] * len(PROMPTS), 20)
    advance(prefill, generations)
    decode.cache.view(0, 200)[:] = prefill.cache.view(0, 200)
    for _ in range(19):
        advance(decode, generations)
    assert [g.generated for g in generations] == generate(prefill, PROMPTS, 20)


def test_memory_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(BadSetting, match="expandable_segments"):
        chosen_device("cuda")


def test_the_cache_takes_its_share_of_the_free_memory(model_folder):
    folder: Path = model_folder("llama")
    free, _ = torch.cuda.mem_get_info()
    engine = Engine.load(EngineSettings(model=str(folder), device="cuda", memory_fraction=0.1))
    assert engine.blocks * engine.cache.block_bytes == pytest.approx(0.1 * free, rel=0.2)
