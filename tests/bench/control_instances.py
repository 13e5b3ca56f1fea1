"""Prefill and decode instances without a model: the real services on an engine that only takes time. For bench_control.

Prompts are computed at once; a decode step lasts as long as it is told to. When each token was there is written into a
file that whoever measures maps into its memory too: seconds of the monotonic clock by (seed of the request, token).
"""

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.decode.config import DecodeConfig
from services.decode.service import DecodeService
from services.prefill.config import PrefillConfig
from services.prefill.service import PrefillService
from shared import telemetry
from shared.bus.nats import NatsBus
from shared.engine.kv_cache import KvCache
from shared.engine.pieces import Drawn, Piece
from shared.specs.ids import Role, new_instance_id
from shared.specs.model import ModelSpec
from shared.specs.model_config import read_model_spec
from shared.telemetry.metrics import DecodeMetrics, PrefillMetrics
from shared.transport.loopback import LoopbackHub, LoopbackTransport
from shared.worker.lifecycle import stop_on_signals

BLOCKS, BLOCK_TOKENS = 1 << 15, 16
MOST_SEEDS, MOST_TOKENS = 1 << 13, 1 << 10


def map_clock(file: Path) -> np.ndarray:
    """float64 [MOST_SEEDS, MOST_TOKENS]; 0 where no token has been yet."""
    mode = "r+" if file.exists() else "w+"
    return np.memmap(file, np.float64, mode, shape=(MOST_SEEDS, MOST_TOKENS))


class TimedEngine:
    """In place of shared.engine.step.Engine: draws the same token always."""

    def __init__(self, spec: ModelSpec, token: int, step_seconds: float, clock: np.ndarray) -> None:
        self.spec = spec
        self.cache = KvCache(spec, BLOCKS, BLOCK_TOKENS, torch.uint8, torch.device("cpu"))
        self.blocks, self.block_tokens, self.kv_format = BLOCKS, BLOCK_TOKENS, self.cache.kv_format
        self.max_model_tokens = spec.max_positions
        self._drawn, self._step_seconds, self._clock = Drawn(token, None), step_seconds, clock

    def use_threads(self) -> None:
        pass

    def step(self, pieces: Sequence[Piece]) -> list[Drawn | None]:
        if self._step_seconds and pieces[0].start:
            time.sleep(self._step_seconds)
        draws = [piece.draw for piece in pieces if piece.draw is not None]
        seeds = [draw.sampling.seed for draw in draws]
        self._clock[seeds, [len(draw.generated) for draw in draws]] = time.monotonic()
        return [self._drawn] * len(pieces)


async def serve(options: argparse.Namespace) -> None:
    telemetry.start("decode", new_instance_id("decode"), telemetry.TelemetrySettings.from_env())
    stop, hub, clock = stop_on_signals(), LoopbackHub(), map_clock(options.clock)
    spec = read_model_spec(Path(os.environ["DISTSERVE_MODEL"]))
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        counts: dict[Role, int] = {"prefill": options.prefill, "decode": options.decode}
        for role, count in counts.items():
            for _ in range(count):
                instance = new_instance_id(role)
                bus = await stack.enter_async_context(
                    await NatsBus.connect(os.environ["NATS_URL"], name=instance, role=role)
                )
                transport = await stack.enter_async_context(LoopbackTransport(hub, instance))
                engine: Any = TimedEngine(spec, options.token, options.step_ms / 1e3, clock)
                if role == "prefill":
                    prefill = PrefillConfig.from_env(os.environ)
                    metrics = PrefillMetrics(instance, "bench")
                    service = PrefillService(prefill, instance, bus, transport, engine, metrics)
                else:
                    decode = DecodeConfig.from_env(os.environ)
                    service = DecodeService(decode, instance, bus, transport, engine, DecodeMetrics(instance, "bench"))
                tasks.create_task(service.run(stop))
    telemetry.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=0.0, help="that a decode step takes")
    parser.add_argument("--token", type=int, required=True, help="that every step draws")
    parser.add_argument("--clock", type=Path, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
