"""From logits to tokens, all rows of a step at once; a feature that no row uses costs nothing.

Order: repetition, frequency and presence penalties, bias, minimum length, temperature, top-k, top-p, min-p, noise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared.engine.logit_changes import change_logits
from shared.engine.noise import GumbelNoise, stream_key
from shared.engine.pieces import Draw, Drawn
from shared.messages.tokens import TokenLogprobs
from shared.specs.sampling import Sampling

GREEDY_BELOW = 1e-5  # temperatures under this would overflow the scaled logits
CANDIDATES = 1024  # most likely tokens among which top-p is first looked for on a CPU: sorting all is 5 times dearer


class NotFinite(Exception):
    """Rows whose logits hold NaN or infinity."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.rows = rows


class Sampler:
    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._noise = GumbelNoise(vocab_size, device)
        self._vocab_size = vocab_size

    def draw(self, logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        """One token per row of logits float32 [rows, vocabulary], which are overwritten. NotFinite names bad rows.

        Waits for the device once.
        """
        peaks, choices = logits.max(dim=-1)
        asked = [row for row, draw in enumerate(draws) if draw.sampling.logprobs is not None]
        raw = logits[asked].log_softmax(dim=-1) if asked else None
        if change_logits(logits, draws):
            choices = logits.argmax(dim=-1)
        sampled = [row for row, draw in enumerate(draws) if draw.sampling.temperature >= GREEDY_BELOW]
        if sampled:
            part = logits if len(sampled) == len(draws) else logits[sampled]
            choices[sampled] = self._draw_sampled(part, [draws[row] for row in sampled])
        columns = [choices[:, None].double(), peaks[:, None].double()]
        if raw is None:
            return _drawn(torch.cat(columns, dim=1).tolist())
        most = min(max(draw.sampling.logprobs or 0 for draw in draws), self._vocab_size)
        reported = self._reported(raw, choices[asked], most)
        padded = reported.new_zeros(len(draws), reported.shape[1])
        padded[asked] = reported
        rows = torch.cat([*columns, padded], dim=1).tolist()
        return _drawn(rows, [draw.sampling.logprobs for draw in draws])

    def _draw_sampled(self, logits: Tensor, draws: list[Draw]) -> Tensor:
        """Token ids int64 [rows] drawn from logits float32 [rows, vocabulary], which are overwritten."""
        samplings = [draw.sampling for draw in draws]
        logits /= logits.new_tensor([sampling.temperature for sampling in samplings])[:, None]
        filtered = [row for row, sampling in enumerate(samplings) if _filters(sampling)]
        if filtered:
            logits[filtered] = self._filtered(logits[filtered], [samplings[row] for row in filtered])
        noise = self._noise.rows([stream_key(draw.sampling.seed, len(draw.generated)) for draw in draws])
        return noise.add_(logits).argmax(dim=-1)

    def _filtered(self, logits: Tensor, samplings: list[Sampling]) -> Tensor:
        """-inf for every token outside top-k, top-p or min-p. Tokens as likely as the last one kept are kept too."""
        vocabulary = logits.shape[1]
        most = [sampling.top_k if 0 < sampling.top_k < vocabulary else vocabulary for sampling in samplings]
        share = [sampling.top_p if sampling.top_p < 1.0 else math.inf for sampling in samplings]
        candidates = vocabulary if logits.is_cuda else CANDIDATES  # to look whether these are enough is to wait
        width = max(count if count < vocabulary else candidates for count in most)
        least = _least_kept(logits, most, share, min(width, vocabulary))
        ratios = logits.new_tensor([sampling.min_p for sampling in samplings])
        least = torch.maximum(least, logits.amax(dim=-1) + ratios.log())
        return logits.masked_fill(logits < least[:, None], -math.inf)

    def _reported(self, raw: Tensor, choices: Tensor, most: int) -> Tensor:
        """float64 [rows, 1 + 2 * most]: the choice's log-probability, then the `most` best and their token ids."""
        best, ids = raw.topk(most, dim=-1)
        return torch.cat([raw.gather(1, choices[:, None]).double(), best.double(), ids.double()], dim=1)


def _filters(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def _least_kept(logits: Tensor, most: list[int], share: list[float], width: int) -> Tensor:
    """The smallest logit [rows] that top-k `most` and then top-p `share` keep, looking at the `width` largest."""
    vocabulary = logits.shape[1]
    largest = logits.topk(width, dim=-1).values
    counts = torch.tensor(most, device=logits.device)[:, None]
    shares = torch.tensor(share, device=logits.device)[:, None]
    largest = largest.masked_fill(torch.arange(width, device=logits.device) >= counts, -math.inf)
    total = torch.where(counts < vocabulary, largest.logsumexp(-1, keepdim=True), logits.logsumexp(-1, keepdim=True))
    probabilities = (largest - total).exp()
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = ((before < shares) & (largest > -math.inf)).sum(dim=-1, keepdim=True).clamp(min=1)
    if width < vocabulary and bool(((kept == width) & (counts == vocabulary) & (shares < 1.0)).any()):
        return _least_kept(logits, most, share, vocabulary)
    least = largest.gather(1, kept - 1)
    return least.masked_fill((counts == vocabulary) & (shares > 1.0), -math.inf)[:, 0]


def _drawn(rows: list[list[float]], asked: Sequence[int | None] = ()) -> list[Drawn]:
    """rows: token id, largest raw logit, then what `_reported` gives."""
    bad = [row for row, values in enumerate(rows) if not math.isfinite(values[1])]
    if bad:
        raise NotFinite(bad)
    if not asked:
        return [Drawn(int(values[0]), None) for values in rows]
    return [
        Drawn(int(values[0]), None if count is None else _logprobs(values[2:], count))
        for values, count in zip(rows, asked, strict=True)
    ]


def _logprobs(values: list[float], count: int) -> TokenLogprobs:
    most = len(values) // 2
    best = zip(map(int, values[1 + most :]), values[1 : 1 + most], strict=True)
    return TokenLogprobs(token=values[0], top=tuple(best)[:count])
