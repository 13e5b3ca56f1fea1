"""The fields of the OpenAI routes: which are supported, which are not, and which do not matter."""

from typing import Any

from services.gateway.fields import Field, Flag, Integer, Many, Number, OneOrMany, Text, TokenIds

MOST_MESSAGES = 4096
MOST_CHOICES = 128  # of one prompt; also the most prompts of one call
MOST_TOKENS = 2**31 - 1
ROLES = ("system", "developer", "user", "assistant")

STOP = OneOrMany(Text(1, 1024), most=4)
TOKEN_IDS = TokenIds(MOST_TOKENS)

SHARED_FIELDS: dict[str, Field] = {
    "model": Text(1, 256),
    "max_tokens": Integer(1, MOST_TOKENS),
    "temperature": Number(0, 2),
    "top_p": Number(0, 1, above_least=True),
    "top_k": Integer(-1, MOST_TOKENS),  # 0 and -1: all
    "min_p": Number(0, 1),
    "n": Integer(1, MOST_CHOICES),
    "stop": STOP,
    "stop_token_ids": Many(Integer(0, MOST_TOKENS), 0, 64),
    "seed": Integer(-(2**63), 2**63 - 1),
    "stream": Flag(),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "repetition_penalty": Number(0, 10, above_least=True),
    "ignore_eos": Flag(),
    "min_tokens": Integer(0, MOST_TOKENS),
    "user": Text(),
}
CHAT_FIELDS = SHARED_FIELDS | {
    "max_completion_tokens": Integer(1, MOST_TOKENS),
    "logprobs": Flag(),
    "top_logprobs": Integer(0, 20),
}
COMPLETION_FIELDS = SHARED_FIELDS | {"logprobs": Integer(0, 20), "best_of": Integer(1, MOST_CHOICES)}

# Fields that would change the answer, each with the values that would not.
SHARED_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "response_format": ({"type": "text"},),
}
CHAT_UNSUPPORTED = SHARED_UNSUPPORTED | {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "best_of": (1,),
    "echo": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
}
COMPLETION_UNSUPPORTED = SHARED_UNSUPPORTED | {"suffix": ("",), "echo": (False,), "add_special_tokens": (True,)}
# Fields that do not touch the answer.
HARMLESS = frozenset(("metadata", "service_tier", "prompt_cache_key", "safety_identifier", "parallel_tool_calls"))
