"""The official client against a real HTTP server."""

import json
from typing import Any

import openai
import pytest

from tests.integration.gateway.running_gateway import RunningGateway

MESSAGES: list = [{"role": "user", "content": "hi"}]


async def test_a_chat_completion(gateway: RunningGateway) -> None:
    answer = await gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "the quick brown fox",
        "stop",
    )
    assert (answer.object, answer.model) == ("chat.completion", "tiny")
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 5, 9)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_chat_stream_opens_with_the_role_and_closes_with_reason_and_usage(gateway: RunningGateway) -> None:
    gateway.backend.token_seconds = 0.005
    stream = await gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    first, *middle, last, usage = [chunk async for chunk in stream]
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].finish_reason is None
    assert len(middle) > 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in [*middle, last]) == "the quick brown fox"
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 5
    assert len({chunk.id for chunk in (first, *middle, last, usage)}) == 1
    assert all(chunk.usage is None for chunk in (first, *middle, last))


async def test_usage_is_in_every_chunk_if_it_is_asked_for(gateway: RunningGateway) -> None:
    gateway.backend.token_seconds = 0.005
    options: Any = {"include_usage": True, "continuous_usage_stats": True}  # a field of vLLM's, which load clients send
    stream = await gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options=options
    )
    _, *chunks = [chunk async for chunk in stream]
    told = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(told) == len(chunks)
    assert told == sorted(told)
    assert told[0] >= 1
    assert told[-1] == 5
    assert {chunk.usage.prompt_tokens for chunk in chunks if chunk.usage is not None} == {4}


async def test_the_bytes_of_a_stream_are_events_that_end_with_done(gateway: RunningGateway) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": True}
    response = await gateway.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *events, last, empty = response.text.split("\n\n")
    assert (last, empty) == ("data: [DONE]", "")
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk


async def test_several_choices_have_seeds_and_requests_of_their_own(gateway: RunningGateway) -> None:
    answer = await gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({work.request for work in gateway.backend.submitted}) == 3
    seeds = [work.sampling.seed for work in gateway.backend.submitted]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 15)


async def test_the_same_prompt_twice_gives_two_answers_unless_a_seed_is_given(gateway: RunningGateway) -> None:
    await gateway.openai.completions.create(model="tiny", prompt=["one", "one"], max_tokens=1)
    await gateway.openai.completions.create(model="tiny", prompt=["one", "one"], max_tokens=1, seed=7)
    first, second, *seeded = [work.sampling.seed for work in gateway.backend.submitted]
    assert first != second
    assert seeded == [7, 7]


async def test_several_prompts_make_several_choices_in_their_order(gateway: RunningGateway) -> None:
    answer = await gateway.openai.completions.create(model="tiny", prompt=["one", "three"], n=2, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    works = gateway.backend.submitted
    assert works[0].prompt == works[1].prompt != works[2].prompt == works[3].prompt
    assert answer.usage.prompt_tokens == len(works[0].prompt) + len(works[2].prompt)
    assert {choice.finish_reason for choice in answer.choices} == {"length"}


async def test_a_completion_of_token_ids_has_16_tokens_by_default(gateway: RunningGateway) -> None:
    gateway.backend.text = "a" * 40
    answer = await gateway.openai.completions.create(model="tiny", prompt=[5, 6, 7])
    assert gateway.backend.submitted[0].prompt == (5, 6, 7)
    assert (answer.object, answer.choices[0].finish_reason) == ("text_completion", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_a_streamed_completion(gateway: RunningGateway) -> None:
    stream = await gateway.openai.completions.create(model="tiny", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "the quick brown fox"


async def test_the_default_length_of_a_chat_answer_is_the_rest_of_the_window(gateway: RunningGateway) -> None:
    await gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES)
    work = gateway.backend.submitted[0]
    assert work.final_tokens == 512  # what the instances say they hold, less than the model could


async def test_characters_of_several_tokens_arrive_whole(gateway: RunningGateway) -> None:
    gateway.backend.text = "größer 日本語 🙂🙃"
    gateway.backend.token_seconds = 0.001
    stream = await gateway.openai.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == gateway.backend.text
    assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_across_tokens_ends_the_answer_and_the_work(gateway: RunningGateway, stream: bool) -> None:
    gateway.backend.text = "one two END three " * 5
    gateway.backend.token_seconds = 0.002
    body = {"model": "tiny", "messages": MESSAGES, "stop": ["END"], "stream": stream}
    response = await gateway.http.post("/v1/chat/completions", json=body)
    if stream:
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("one two ", "stop")
    assert len(gateway.backend.aborted) == 1
    assert gateway.backend.running == 0
    assert gateway.backend.ended[0].outcome == "stop"


async def test_log_probabilities_of_a_chat_answer(gateway: RunningGateway) -> None:
    gateway.backend.text = "a語"
    answer = await gateway.openai.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(one.bytes or []) for one in logprobs.content).decode() == "a語"
    assert logprobs.content[0].token == "a"
    assert logprobs.content[0].logprob == -0.5
    assert [top.logprob for top in logprobs.content[0].top_logprobs] == [-0.5, -1.5]


async def test_log_probabilities_of_a_completion_streamed_and_whole_are_the_same(gateway: RunningGateway) -> None:
    gateway.backend.text = "the quick fox"
    whole = await gateway.openai.completions.create(model="tiny", prompt="x", logprobs=1)
    stream = await gateway.openai.completions.create(model="tiny", prompt="x", logprobs=1, stream=True)
    parts = [chunk.choices[0].logprobs async for chunk in stream]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == "the quick fox"
    assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]
    assert [token for part in parts if part for token in part.tokens or []] == logprobs.tokens
    assert [offset for part in parts if part for offset in part.text_offset or []] == logprobs.text_offset
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0][logprobs.tokens[0]] == -0.5


async def test_models_can_be_listed_and_looked_up(gateway: RunningGateway) -> None:
    models = await gateway.openai.models.list()
    assert [model.id for model in models.data] == ["tiny"]
    assert (await gateway.openai.models.retrieve("tiny")).owned_by == "distserve"
    with pytest.raises(openai.NotFoundError):
        await gateway.openai.models.retrieve("other")


async def test_errors_are_the_clients_own_exceptions(gateway: RunningGateway) -> None:
    create = gateway.openai.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await create(model="other", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        await create(model="tiny", messages=MESSAGES, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as caught:
        await create(model="tiny", messages=MESSAGES, max_tokens=510)
    assert caught.value.code == "context_length_exceeded"
