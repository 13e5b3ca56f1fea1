"""What a decode instance does between two steps of its engine: the real worker, thread and bus, nothing else running.

    python -m tests.bench.bench_step_loop [--model FOLDER] [--batches 1 8 32] [--threads 1]

For each batch, in turns: steps of the engine alone, and steps through the worker, whose tokens go to a real NATS
server. `between` is what a step takes there beyond the engine's own time; `engine, served / alone` is what the event
loop beside it costs the engine itself (the interpreter lock, caches); `loop CPU` is the event loop's own work.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from opentelemetry.context import Context

from services.decode.sequence import Arrival, Sequence
from services.decode.worker import BatchLimits, DecodeWorker
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.engine.pieces import Draw, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.engine.thread import EngineThread
from shared.kv.layout import blocks_for
from shared.kv.ledger import Ledger, State
from shared.messages.requests import SubmitRequest
from shared.specs.ids import InstanceId, RequestId, new_instance_id
from shared.specs.sampling import Sampling
from shared.telemetry.metrics import DecodeMetrics
from shared.worker.breakdown import Breakdown
from shared.worker.teller import Teller
from tests.bench.bench_engine import demo_sized_model
from tests.nats_server import NatsServer

CONTEXT = 64
GATEWAY = InstanceId("gateway-0badcafe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder (default: a random Llama of demo size)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or demo_sized_model(Path(scratch))
        engine = Engine.load(EngineSettings(model=str(folder), threads=options.threads))
        server = NatsServer(Path(scratch))
        server.start()
        try:
            asyncio.run(measure(engine, server.url, options))
        finally:
            server.stop()


async def measure(engine: Engine, nats_url: str, options: argparse.Namespace) -> None:
    for batch in options.batches:
        alone, wall, inside, loop_cpu = [], [], [], []
        for _ in range(options.rounds):
            alone += await asyncio.to_thread(steps_alone, engine, batch, options.steps)
            found = await steps_served(engine, nats_url, batch, options.steps)
            wall += found[0]
            inside += found[1]
            loop_cpu.append(found[2])
        alone_ms, wall_ms, inside_ms = (1e3 * statistics.median(times) for times in (alone, wall, inside))
        print(
            f"batch {batch:3d}: engine alone {alone_ms:6.2f} ms, a step served {wall_ms:6.2f} ms: "
            f"between {wall_ms - inside_ms:5.2f} ms, engine, served / alone {inside_ms / alone_ms:.2f}, "
            f"loop CPU {1e3 * statistics.median(loop_cpu):.2f} ms"
        )


def steps_alone(engine: Engine, batch: int, steps: int) -> list[float]:
    engine.use_threads()
    width = blocks_for(CONTEXT + steps, engine.block_tokens)
    tables = [list(range(number * width, (number + 1) * width)) for number in range(batch)]
    sampling = Sampling(max_tokens=1 << 20, temperature=0.0)
    times = []
    for step in range(steps):
        pieces = [Piece([7], CONTEXT + step - 1, table, Draw(sampling, [7], range(step))) for table in tables]
        started = time.perf_counter()
        engine.step(pieces)
        times.append(time.perf_counter() - started)
    return times


async def steps_served(engine: Engine, nats_url: str, batch: int, steps: int) -> tuple[list[float], list[float], float]:
    """Seconds of each step by the clock, within the engine, and of the event loop's thread per step on average."""
    instance = new_instance_id("decode")
    ledger, thread = Ledger(engine.blocks), EngineThread(engine)
    async with await NatsBus.connect(BusSettings(url=nats_url), name=instance, role="decode") as bus:
        teller = Teller(bus, instance)
        limits = BatchLimits(order="prefill_priority", prefill_tokens=512, block_tokens=engine.block_tokens)
        worker = DecodeWorker(thread, ledger, teller, DecodeMetrics(instance, "bench"), limits, Breakdown())
        for number in range(batch):
            worker.join(decoding(engine, ledger, teller, number, steps))
        ends, inside = [time.perf_counter()], []
        inner = thread.step

        async def timed(pieces: list[Piece]) -> object:
            drawn = await inner(pieces)
            ends.append(time.perf_counter())
            inside.append(thread.step_seconds)
            return drawn

        thread.step = timed  # pyright: ignore[reportAttributeAccessIssue]
        cpu = time.thread_time()
        run = asyncio.create_task(worker.run())
        await teller.settled()
        cpu = time.thread_time() - cpu
        run.cancel()
    await thread.close()
    return [after - before for before, after in itertools.pairwise(ends)], inside, cpu / len(inside)


def decoding(engine: Engine, ledger: Ledger, teller: Teller, number: int, steps: int) -> Sequence:
    """One whose context is in the cache already, as after a pull."""
    work = SubmitRequest(
        request=RequestId(f"r{number}"),
        attempt=1,
        gateway=GATEWAY,
        model="bench",
        prompt=(7,) * CONTEXT,
        sampling=Sampling(max_tokens=steps, temperature=0.0),
        seal_key=bytes(32),
    )
    teller.begin(work)
    arrival = Arrival(work, None, Context())
    ledger.take(arrival.owner, blocks_for(CONTEXT, engine.block_tokens), State.RUNNING)
    holding = ledger.get(arrival.owner)
    assert holding is not None
    sequence = Sequence.of(arrival, holding)
    sequence.computed = CONTEXT - 1
    return sequence


if __name__ == "__main__":
    main()
