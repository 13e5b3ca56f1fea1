"""The same request gives the same tokens, whichever way it is served."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.specs.sampling import Sampling
from tests.cluster import MODEL, Cluster

PROMPTS = [[7, 8, 9], list(range(10, 40)), [50] * 17, list(range(200, 206)), [100, 30] * 20, [11]]
GREEDY = Sampling(max_tokens=12, temperature=0.0, stop_token_ids=(1,))
SAMPLED = Sampling(max_tokens=12, temperature=1.3, top_p=0.9, seed=4242, stop_token_ids=(1,))
PENALISED = replace(SAMPLED, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, min_tokens=3)


async def serve_all(cluster: Cluster, requests):
    answers = [cluster.gateway.generate(prompt, sampling, MODEL) for prompt, sampling in requests]
    return [answer.tokens for answer in await asyncio.gather(*answers)]


@pytest.mark.parametrize(
    ("prefill", "decode", "settings"),
    [
        (2, 2, {}),
        (0, 1, {"DISTSERVE_COLOCATED": "1"}),
        (
            0,
            2,
            {
                "DISTSERVE_COLOCATED": "1",
                "DISTSERVE_COLOCATED_POLICY": "chunked",
                "DISTSERVE_PREFILL_BATCH_TOKENS": "8",
            },
        ),
    ],
    ids=["disaggregated", "colocated", "chunked"],
)
async def test_tokens_equal_those_of_one_engine_alone(
    connect, make_transport, model: Path, alone, prefill, decode, settings
):
    requests = [(prompt, sampling) for prompt in PROMPTS for sampling in (GREEDY, SAMPLED, PENALISED)]
    async with Cluster(connect, make_transport, model, prefill=prefill, decode=decode, settings=settings) as cluster:
        served = await serve_all(cluster, requests)
        await cluster.until(cluster.idle)
    assert served == [alone(prompt, sampling) for prompt, sampling in requests]


async def test_log_probabilities_come_with_every_token_from_the_first_on(connect, make_transport, model: Path):
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.generate([7, 8, 9], replace(GREEDY, logprobs=2), MODEL)
    assert len(answer.logprobs) == len(answer.tokens)
    for token, logprobs in zip(answer.tokens, answer.logprobs, strict=True):
        assert logprobs.top[0] == (token, pytest.approx(logprobs.token))
        assert len(logprobs.top) == 2


async def test_an_answer_of_one_token_never_reaches_the_decode_side(connect, make_transport, model: Path, alone):
    one = replace(GREEDY, max_tokens=1)
    async with Cluster(connect, make_transport, model) as cluster:
        answer = await cluster.gateway.generate([7, 8, 9], one, MODEL)
        await cluster.until(cluster.idle)
    assert (answer.tokens, answer.finish) == (alone([7, 8, 9], one), "length")
