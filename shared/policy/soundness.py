"""Whether an instance can compute what it is told to. Gateways check what clients ask for; this is for their sender.

A request that makes a step fail costs everybody in its batch an attempt, and three of them their instance; an index
outside a tensor ends a whole CUDA process. What is checked here cannot do either. The bounds are those of the API,
and cheap checks come first.
"""

import math
from collections.abc import Sequence

from shared.kv.layout import blocks_for
from shared.messages.handoff import KvHandle
from shared.messages.requests import SEAL_KEY_BYTES, Refused, SubmitRequest
from shared.specs.sampling import Sampling

MOST_LOGPROBS = 20
MOST_BIASES = 1024
MOST_STOP_TOKENS = 1024
MOST_TOKEN_ID = 2**31 - 1
RANGES = {
    "seed": (0, 2**63 - 1),
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, MOST_TOKEN_ID),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (math.ulp(0.0), 10.0),
    "min_tokens": (0, MOST_TOKEN_ID),
}
LARGEST_BIAS = 100.0


def unsound(work: SubmitRequest, vocabulary: int) -> Refused | None:
    """The refusal of work that no engine with that `vocabulary` can do."""
    flaw = _flaw_of_sampling(work.sampling, len(work.generated), vocabulary)
    if not flaw and not work.prompt:
        flaw = "its prompt is empty"
    if not flaw and len(work.seal_key) != SEAL_KEY_BYTES:
        flaw = "it came without a key to seal its tokens with"
    if not flaw:
        flaw = _flaw_of_tokens(work.prompt, vocabulary) or _flaw_of_tokens(work.generated, vocabulary)
    return Refused.of(work, "invalid", flaw) if flaw else None


def unsound_kv(kv: KvHandle, work: SubmitRequest, vocabulary: int, block_tokens: int) -> Refused | None:
    """The refusal of KV from which this work cannot go on."""
    if kv.tokens != work.context_tokens or len(kv.blocks) != blocks_for(kv.tokens, block_tokens):
        flaw = f"KV of {kv.tokens} tokens in {len(kv.blocks)} blocks, for a context of {work.context_tokens}"
    else:
        flaw = _flaw_of_tokens((kv.first_token,), vocabulary)
    return Refused.of(work, "invalid", flaw) if flaw else None


def _flaw_of_sampling(sampling: Sampling, generated: int, vocabulary: int) -> str:
    if sampling.max_tokens <= generated:
        return f"{generated} tokens are there, and max_tokens is {sampling.max_tokens}"
    for name, (least, most) in RANGES.items():
        value = getattr(sampling, name)
        if not least <= value <= most:
            return f"{name} is {value}, outside {least} to {most}"
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MOST_LOGPROBS:
        return f"{sampling.logprobs} log-probabilities of each token"
    if len(sampling.logit_bias) > MOST_BIASES or len(sampling.stop_token_ids) > MOST_STOP_TOKENS:
        return f"{len(sampling.logit_bias)} biases, {len(sampling.stop_token_ids)} stop tokens"
    if any(not -LARGEST_BIAS <= bias <= LARGEST_BIAS for _, bias in sampling.logit_bias):
        return f"a bias beyond {LARGEST_BIAS:g}"
    # A model's own stop tokens may lie outside the rows of its embedding: they are never drawn.
    return _flaw_of_tokens(sampling.stop_token_ids, MOST_TOKEN_ID + 1) or _flaw_of_tokens(
        [token for token, _ in sampling.logit_bias], vocabulary
    )


def _flaw_of_tokens(tokens: Sequence[int], vocabulary: int) -> str:
    if tokens and (min(tokens) < 0 or max(tokens) >= vocabulary):
        wrong = min(tokens) if min(tokens) < 0 else max(tokens)
        return f"token id {wrong} is outside the vocabulary of {vocabulary}"
    return ""
