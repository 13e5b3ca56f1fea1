"""How the next token is chosen: the same facts on the wire, in the engine and in the simulator."""

from shared.specs.record import Number, Record


class Sampling(Record, frozen=True, kw_only=True):
    """What decides a request's tokens besides the model. The noise of a draw depends on (seed, position) only."""

    max_tokens: int  # of the whole answer, tokens of earlier attempts included; >= 1
    seed: int = 0  # below 2**63
    temperature: Number = 1.0  # 0 is greedy
    top_p: Number = 1.0
    top_k: int = 0  # 0: all
    min_p: Number = 0.0
    presence_penalty: Number = 0.0  # over generated tokens
    frequency_penalty: Number = 0.0  # over generated tokens
    repetition_penalty: Number = 1.0  # over prompt and generated tokens
    logit_bias: tuple[tuple[int, Number], ...] = ()
    logprobs: int | None = None  # how many alternatives to report; None: no log-probabilities at all
    min_tokens: int = 0  # no stop token before this many
    stop_token_ids: tuple[int, ...] = ()  # the end tokens unless ignore_eos; they end the answer, not part of its text
