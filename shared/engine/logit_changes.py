"""Penalties, biases and forbidden tokens: few changes at named places of the logits, made for all rows at once."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shared.engine.pieces import Draw


def change_logits(logits: Tensor, draws: Sequence[Draw]) -> bool:
    """Apply what the draws ask for to logits float32 [draws, vocabulary], in place. False: nobody asked for anything.

    A token id outside the vocabulary cannot be drawn anyway, so what is said about it is skipped.
    """
    vocabulary = logits.shape[1]
    penalties = [entry for row, draw in enumerate(draws) for entry in _penalties(row, draw) if entry[1] < vocabulary]
    biases = [entry for row, draw in enumerate(draws) for entry in _biases(row, draw) if entry[1] < vocabulary]
    if penalties:
        table = torch.tensor(penalties, dtype=torch.float64, device=logits.device)
        places = (table[:, 0].long(), table[:, 1].long())
        repetition, reduction = table[:, 2].float(), table[:, 3].float()
        values = logits[places]
        logits[places] = torch.where(values > 0, values / repetition, values * repetition) - reduction
    if biases:
        table = torch.tensor(biases, dtype=torch.float64, device=logits.device)
        places = (table[:, 0].long(), table[:, 1].long())
        logits.index_put_(places, table[:, 2].float(), accumulate=True)
    return bool(penalties or biases)


def _penalties(row: int, draw: Draw) -> Iterator[tuple[int, int, float, float]]:
    """(row, token, repetition penalty, what to subtract after it) for each token that occurred."""
    sampling = draw.sampling
    repeats = sampling.repetition_penalty != 1.0
    if not repeats and sampling.presence_penalty == 0.0 and sampling.frequency_penalty == 0.0:
        return
    counts = Counter(draw.generated)
    for token in counts.keys() | set(draw.prompt) if repeats else counts.keys():
        count = counts[token]
        reduction = sampling.frequency_penalty * count + (sampling.presence_penalty if count else 0.0)
        yield row, token, sampling.repetition_penalty, reduction


def _biases(row: int, draw: Draw) -> Iterator[tuple[int, int, float]]:
    sampling = draw.sampling
    for token, bias in sampling.logit_bias:
        yield row, token, bias
    if len(draw.generated) < sampling.min_tokens:
        for token in sampling.stop_token_ids:
            yield row, token, -math.inf
