"""Every model family over real NATS and real UCX, two prefill and two decode instances, held to transformers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.specs.sampling import Sampling
from shared.transport.ucx import UcxTransport
from tests.cluster import MODEL, Cluster
from tests.models import make_model

PROMPTS = [[7, 8, 9], list(range(10, 60)), [100, 30] * 12, [11]]
TOKENS = 64
GREEDY = Sampling(max_tokens=TOKENS, temperature=0.0)


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen2", "qwen3", "opt", "gpt2"])
async def test_served_tokens_equal_those_of_transformers(connect_nats, tmp_path: Path, family: str):
    folder = make_model(family, tmp_path)
    async with Cluster(connect_nats, lambda _: UcxTransport(), folder, prefill=2, decode=2, blocks=160) as cluster:
        answers = await asyncio.gather(*(cluster.gateway.generate(p, GREEDY, MODEL) for p in PROMPTS))
        await cluster.until(cluster.idle)
    assert [answer.tokens for answer in answers] == [greedy_by_transformers(folder, prompt) for prompt in PROMPTS]
    assert all(not answer.interruptions for answer in answers)


def greedy_by_transformers(folder: Path, prompt: list[int]) -> list[int]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
    return output[0, len(prompt) :].tolist()
