"""Loading the engine, with a bar on a terminal and a line in the log."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from tqdm import tqdm

from shared.engine.settings import EngineSettings
from shared.engine.step import Engine

log = structlog.get_logger()


async def engine_loaded(settings: EngineSettings) -> Engine:
    """`load_engine` in a thread of its own, which ends.

    OpenMP's threads belong to the thread that called them first. Those of loading would live on in an executor of
    asyncio's, and where OpenMP counts more threads than cores it does not let them spin at a barrier: a decode step of
    12 layers then takes 21 ms instead of 14, because every one of its hundred barriers wakes a sleeping thread.
    """
    loader = ThreadPoolExecutor(1, "loading")
    try:
        return await asyncio.get_running_loop().run_in_executor(loader, load_engine, settings)
    finally:
        loader.shutdown(wait=False)


def load_engine(settings: EngineSettings) -> Engine:
    """Blocks until weights and KV pool are in memory. BadModel or BadSetting say what is wrong, and the remedy."""
    started = time.perf_counter()
    log.info("loading_model", model=settings.model, device=settings.device)
    with tqdm(desc="weights", unit="B", unit_scale=True, disable=None) as bar:  # None: only on a terminal

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        engine = Engine.load(settings, progress)
    wanted = settings.max_model_tokens
    if wanted is not None and wanted > engine.max_model_tokens:
        log.warning(
            "max_model_tokens_not_met",
            wanted=wanted,
            served=engine.max_model_tokens,
            model_was_made_for=engine.spec.max_positions,
            kv_pool_holds=engine.blocks * engine.block_tokens,
        )
    log.info(
        "model_loaded",
        seconds=round(time.perf_counter() - started, 2),
        kv_blocks=engine.blocks,
        kv_bytes=engine.blocks * engine.cache.block_bytes,
        kv_format=engine.kv_format,
        quantization=settings.quantization,
        max_model_tokens=engine.max_model_tokens,
        decode_graphs=engine.no_graphs_because or "captured",
    )
    return engine
