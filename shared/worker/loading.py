"""Loading the engine, with a bar on a terminal and a line in the log."""

import time

import structlog
from tqdm import tqdm

from shared.engine.settings import EngineSettings
from shared.engine.step import Engine

log = structlog.get_logger()


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
