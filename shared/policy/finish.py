"""When an answer is complete. Stop strings are the gateway's: only it has the text."""

from shared.messages.tokens import Finish
from shared.specs.sampling import Sampling


def finish_of(sampling: Sampling, token: int, answer_tokens: int) -> Finish | None:
    """What `token` means as number `answer_tokens` (counting from 1) of the whole answer. None: go on.

    A stop token below `min_tokens` is never drawn, so it needs no test here.
    """
    if token in sampling.stop_token_ids:
        return "stop"
    return "length" if answer_tokens >= sampling.max_tokens else None
