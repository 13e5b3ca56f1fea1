"""The engine: weights, cache and one step for a mixed batch of prefills, chunks and decode tokens."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.engine.attention.choice import attention_for
from shared.engine.attention.paged import PagedAttention
from shared.engine.batch import Batch, lay_out
from shared.engine.cpu.kernels import Kernels, kernels_for
from shared.engine.decode_graphs import DecodeGraphs, why_unusable
from shared.engine.device import (
    cache_blocks,
    check_cores,
    check_quantization,
    chosen_device,
    chosen_dtype,
    computing_dtype,
)
from shared.engine.hub import model_folder
from shared.engine.kv_cache import KvCache
from shared.engine.models.decoder import Decoder
from shared.engine.models.families import load_decoder
from shared.engine.pieces import Draw, Drawn, NonFiniteLogits, Piece
from shared.engine.sampling import NotFinite, Sampler
from shared.engine.settings import EngineSettings
from shared.engine.weights import Progress, Weights
from shared.kv.layout import blocks_for
from shared.specs.model import ModelSpec
from shared.specs.model_config import read_model_spec
from shared.specs.sampling import Sampling

MOST_WARM_TOKENS = 8192


def _silent(_done: int, _total: int) -> None:
    pass


class Engine:
    """Used by one thread at a time. A request's tokens do not depend on what else is in its steps, rounding aside."""

    def __init__(
        self,
        spec: ModelSpec,
        decoder: Decoder,
        cache: KvCache,
        settings: EngineSettings,
        kernels: Kernels | None = None,
    ) -> None:
        self.spec = spec
        self.cache = cache
        self.blocks, self.block_tokens = cache.blocks, cache.block_tokens
        self.kv_format = cache.kv_format
        self.max_model_tokens = min(
            spec.max_positions, settings.max_model_tokens or spec.max_positions, cache.blocks * cache.block_tokens
        )
        self._decoder = decoder
        self._attention: PagedAttention = attention_for(cache, spec, kernels)
        self._device = cache.pool.device
        self._sampler = Sampler(spec.vocab_size, self._device)
        self._threads, self._cores = settings.threads, settings.cores
        self.no_graphs_because = why_unusable(cache) if settings.decode_batch else "not asked for"
        self._graphs: DecodeGraphs | None = None
        if not self.no_graphs_because:
            most_blocks = blocks_for(self.max_model_tokens, cache.block_tokens)
            with torch.inference_mode():
                self._graphs = DecodeGraphs(decoder, cache, spec, most_blocks, settings.decode_batch)

    @classmethod
    def load(cls, settings: EngineSettings, progress: Progress = _silent) -> "Engine":
        """Read the model and make the cache. `progress` hears of bytes read.

        BadModel if the model cannot be served, BadSetting if a setting cannot be met here.
        """
        device = chosen_device(settings.device)
        check_cores(settings.cores)
        dtype = chosen_dtype(settings.dtype, device)
        check_quantization(settings.quantization, device)
        folder: Path = model_folder(settings.model)
        spec = dataclasses.replace(read_model_spec(folder), name=settings.model)
        computed = computing_dtype(dtype, device)
        kernels = kernels_for(spec, device, computed)
        weights = Weights(folder, device, computed, progress, settings.quantization, kernels)
        try:
            with torch.inference_mode():
                decoder = load_decoder(spec, weights)
        finally:
            weights.close()
        blocks = cache_blocks(settings, spec, dtype, device)
        cache = KvCache(spec, blocks, settings.block_tokens, dtype, device)  # not in inference mode: others write to it
        engine = cls(spec, decoder, cache, settings, kernels)
        if device.type == "cuda":
            engine.warm_up()
        return engine

    def warm_up(self) -> None:
        """Prompts of many lengths, before anything is in the cache: a GPU chooses and loads kernels size by size.

        Otherwise the first dozens of requests take several times as long, and a queue grows behind them.
        """
        longest = min(MOST_WARM_TOKENS, self.max_model_tokens)
        draw = Draw(Sampling(max_tokens=1, temperature=0.0), [], [])
        for power in range(longest.bit_length()):
            for tokens in {1 << power, 3 << power >> 1}:
                if tokens <= longest:
                    blocks = range(blocks_for(tokens, self.block_tokens))
                    self.step([Piece(tokens=[0] * tokens, start=0, blocks=blocks, draw=draw)])

    def use_threads(self) -> None:
        """Apply number and cores of the computing threads to the calling thread, which is to call `step`."""
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread, and of those that it will start
        if self._threads or self._cores:
            torch.set_num_threads(self._threads or len(self._cores))

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> list[Drawn | None]:
        """Write the pieces' keys and values and draw their next tokens; None for a piece without a draw.

        Everything is in the cache when this returns. NonFiniteLogits names pieces whose logits were unusable.
        ValueError if a token id is outside the vocabulary. Writing a piece again, as a retry does, changes nothing.
        """
        batch = lay_out(pieces, self.block_tokens)
        self._check(batch)
        drawing = [span for span in batch.spans if pieces[span.piece].draw is not None]
        if self._graphs is not None and len(drawing) == len(batch.spans) and self._graphs.takes(batch):
            logits = self._graphs.logits(batch)
        else:
            logits = self._logits(batch, [span.first_row + span.rows - 1 for span in drawing])
        drawn: list[Drawn | None] = [None] * len(pieces)
        if not drawing:
            self._wait()
            return drawn
        draws = [draw for span in drawing if (draw := pieces[span.piece].draw) is not None]
        try:
            tokens = self._sampler.draw(logits, draws)
        except NotFinite as error:
            raise NonFiniteLogits([drawing[row].piece for row in error.rows]) from None
        for span, token in zip(drawing, tokens, strict=True):
            drawn[span.piece] = token
        return drawn

    def _logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """float32 [rows, vocabulary] for these rows of the batch."""
        tokens = torch.from_numpy(batch.tokens).to(self._device, non_blocking=True)
        positions = torch.from_numpy(batch.positions).to(self._device, non_blocking=True)
        every_row = len(rows) == len(batch.tokens)
        wanted = None if every_row else torch.tensor(rows, dtype=torch.int64, device=self._device)
        self._attention.begin(batch)
        return self._decoder.forward(tokens, positions, wanted, self._attention.attend)

    def _check(self, batch: Batch) -> None:
        lowest, highest = int(batch.tokens.min()), int(batch.tokens.max())
        if lowest < 0 or highest >= self.spec.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"token id {wrong} is outside the vocabulary of {self.spec.vocab_size}")
        last = int(batch.positions.max())
        assert last < self.max_model_tokens, f"position {last} in an engine of {self.max_model_tokens} tokens"
        assert 0 <= batch.block_ids.min() <= batch.block_ids.max() < self.blocks, "a block outside the pool"

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
