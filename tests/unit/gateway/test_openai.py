import json
from typing import Any

import pytest

from services.gateway import openai
from services.gateway.errors import ApiError
from services.gateway.openai import CompletionCall, check_token_ids, read_chat, read_json

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}


def refused(read: Any, body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body)
    assert caught.value.status == 400
    return caught.value


def read_completion(body: dict[str, Any]) -> CompletionCall:
    return openai.read_completion(body, window=100)


def test_a_chat_call_with_nothing_chosen_has_openais_defaults() -> None:
    call = read_chat(CHAT)
    options = call.options
    assert call.messages == ({"role": "user", "content": "hi"},)
    assert (options.max_tokens, options.temperature, options.top_p, options.n) == (None, 1.0, 1.0, 1)
    assert (options.stops, options.logprobs, options.stream, options.seed) == ((), None, False, None)


def test_null_is_the_same_as_absent() -> None:
    nulls = dict.fromkeys(["temperature", "stop", "seed", "tools", "response_format", "logit_bias", "stream_options"])
    assert read_chat(CHAT | nulls) == read_chat(CHAT)


def test_every_supported_field_arrives() -> None:
    chosen = {
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "n": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [3],
        "seed": -1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "presence_penalty": -1,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"7": -100},
        "ignore_eos": True,
        "min_tokens": 2,
        "user": "u",
    }
    options = read_chat(CHAT | chosen | {"logprobs": True, "top_logprobs": 4}).options
    assert (options.max_tokens, options.temperature, options.top_p, options.top_k, options.min_p) == (5, 0, 0.5, 0, 0.1)
    assert (options.n, options.stops, options.stop_token_ids, options.seed) == (2, ("a", "b"), (3,), -1)
    assert (options.stream, options.include_usage, options.continuous_usage) == (True, True, False)
    assert options.logprobs == 4
    assert (options.presence_penalty, options.frequency_penalty, options.repetition_penalty) == (-1, 1.5, 1.1)
    assert (options.logit_bias, options.ignore_eos, options.min_tokens) == (((7, -100.0),), True, 2)
    assert options.ignored == ()
    assert read_completion(COMPLETION | chosen | {"logprobs": 3}).options.logprobs == 3


def test_max_completion_tokens_is_the_newer_name_and_wins() -> None:
    assert read_chat(CHAT | {"max_tokens": 5, "max_completion_tokens": 7}).options.max_tokens == 7


def test_one_stop_string_may_stand_alone() -> None:
    assert read_chat(CHAT | {"stop": "END"}).options.stops == ("END",)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("min_p", 1.5),
        ("n", 0),
        ("n", 129),
        ("n", 1.5),
        ("n", True),
        ("max_tokens", 0),
        ("max_tokens", "10"),
        ("stop", ""),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [1]),
        ("stop", "\ud800"),
        ("stop_token_ids", ["1"]),
        ("seed", 2**63),
        ("seed", 1.5),
        ("stream", "true"),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"²": 1}),
        ("logit_bias", [1]),
        ("ignore_eos", 1),
        ("min_tokens", -1),
        ("user", 5),
        ("model", ""),
        ("model", 5),
        ("stream_options", {"include_usage": True}),  # without stream
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    for read, body in ((read_chat, CHAT), (read_completion, COMPLETION)):
        assert refused(read, body | {field: value}).param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("functions", [{}]),
        ("function_call", "auto"),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content"}),
        ("store", True),
        ("reasoning_effort", "low"),
        ("chat_template", "{{ messages }}"),
        ("best_of", 2),
        ("echo", True),
        ("guided_json", {}),
        ("skip_special_tokens", False),
    ],
)
def test_a_known_field_that_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(read_chat, CHAT | {field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"), [("suffix", "x"), ("echo", True), ("best_of", 2), ("response_format", {"type": "json_schema"})]
)
def test_completions_refuse_what_they_do_not_support(field: str, value: Any) -> None:
    assert refused(read_completion, COMPLETION | {field: value}).param == field


def test_values_that_change_nothing_are_taken() -> None:
    harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "best_of": 1}
    assert read_chat(CHAT | harmless) == read_chat(CHAT)
    assert read_completion(COMPLETION | {"n": 2, "best_of": 2, "suffix": ""}).options.n == 2


def test_an_unknown_field_is_ignored_and_remembered() -> None:
    options = read_chat(CHAT | {"brand_new": 1, "metadata": {"a": "b"}}).options
    assert options.ignored == ("brand_new",)


def test_text_parts_are_joined_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "ada"}]
    assert read_chat(CHAT | {"messages": messages}).messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "ada"},
    )


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "\udfff"}, "messages[0].content"),
        ("hi", "messages[0]"),
    ],
)
def test_a_message_that_cannot_be_used_is_refused_by_its_place(message: Any, param: str) -> None:
    assert refused(read_chat, CHAT | {"messages": [message]}).param == param


@pytest.mark.parametrize("messages", [[], {}, "hi", 5])
def test_messages_are_a_list_that_is_not_empty(messages: Any) -> None:
    assert refused(read_chat, CHAT | {"messages": messages}).param == "messages"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_is_text_or_token_ids_one_or_several(prompt: Any, prompts: Any) -> None:
    assert read_completion(COMPLETION | {"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [[]], [1, "a"], ["a", 1], [[1], "a"], [-1], [1.5], {}, 5, [None]])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    assert refused(read_completion, COMPLETION | {"prompt": prompt}).param == "prompt"


def test_what_is_required_is_missed_by_name() -> None:
    assert refused(read_chat, {"model": "m"}).param == "messages"
    assert refused(read_completion, {"model": "m"}).param == "prompt"
    assert refused(read_chat, {"messages": CHAT["messages"]}).param == "model"


def test_top_logprobs_need_logprobs() -> None:
    assert read_chat(CHAT | {"logprobs": True}).options.logprobs == 0
    assert read_chat(CHAT | {"top_logprobs": 0}).options.logprobs is None
    assert refused(read_chat, CHAT | {"top_logprobs": 3}).param == "top_logprobs"


def test_min_tokens_fit_into_max_tokens() -> None:
    assert refused(read_chat, CHAT | {"min_tokens": 6, "max_tokens": 5}).param == "min_tokens"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"5", b"null", b'{"a": NaN}', b'{"a": Infinity}', b"\xff", b"[" * 100_000, b"9" * 5000],
)
def test_a_body_that_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_json(data)
    assert caught.value.status == 400
    assert json.loads(caught.value.body())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", [[0, *"x" * 100], [[1], ["x"] * 101]])
def test_token_ids_are_counted_before_they_are_looked_at(prompt: Any) -> None:
    assert refused(read_completion, COMPLETION | {"prompt": prompt}).code == "context_length_exceeded"


def test_token_ids_end_with_the_vocabulary() -> None:
    check_token_ids((0, 99), 100, "prompt")
    with pytest.raises(ApiError):
        check_token_ids((100,), 100, "prompt")
