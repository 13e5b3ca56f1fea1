"""What the gateway costs: CPU per token and time from a worker's publish to a client's socket, by number of streams.

    python -m tests.bench.bench_gateway --streams 1 32 256

A real gateway process on a real NATS server; this process plays the scheduler, one decode instance with a fixed pace,
and the clients. So the clients' share is not in the gateway's figures, but competes with it for the cores.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from shared.bus.heart import Heart
from shared.bus.nats import NatsBus
from shared.messages.instances import Beat, Capacity
from shared.messages.requests import Accepted, SubmitRequest
from shared.messages.tokens import TokenBatch, TokenRow
from shared.specs.ids import InstanceId
from tests.nats_server import NatsServer
from tests.tiny_tokenizer import write_tokenizer

STEP_SECONDS = 0.02
DECODE, SCHEDULER = InstanceId("decode-bench"), InstanceId("scheduler-bench")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 8192,
}
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


class PacedWorker:
    """Accepts everything; then one token for every stream in every step."""

    def __init__(self, scheduler: NatsBus, decode: NatsBus, letter: int) -> None:
        self._scheduler, self._decode, self._letter = scheduler, decode, letter
        self.works: list[SubmitRequest] = []
        self.published_at: list[float] = []

    async def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        await self._scheduler.subscribe(SubmitRequest.SUBJECT, self._accept, SubmitRequest)
        capacity = Capacity(max_model_tokens=8192)
        decode = Beat(instance=DECODE, role="decode", number=0, model="bench", colocated=True, capacity=capacity)
        scheduler = Beat(instance=SCHEDULER, role="scheduler", number=0)
        hearts = [
            Heart(self._decode, lambda number: replace(decode, number=number)),
            Heart(self._scheduler, lambda number: replace(scheduler, number=number)),
        ]
        return [tasks.create_task(heart.run()) for heart in hearts]

    async def _accept(self, work: SubmitRequest) -> Accepted:
        self.works.append(work)
        return Accepted(request=work.request, attempt=work.attempt)

    async def run(self, steps: int) -> None:
        begun = time.monotonic()
        subject = TokenBatch.SUBJECT.format(gateway=self.works[0].gateway)
        for index in range(steps):
            await asyncio.sleep(begun + index * STEP_SECONDS - time.monotonic())
            finish = "length" if index == steps - 1 else None
            rows = tuple(
                TokenRow(request=work.request, attempt=0, index=index, tokens=(self._letter,), finish=finish)
                for work in self.works
            )
            self.published_at.append(time.monotonic())
            await self._decode.publish(subject, TokenBatch(source=DECODE, step=index, rows=rows))


async def read_stream(port: int, steps: int, read_at: list[float]) -> None:
    """One client: notes when each token's letter has arrived."""
    body = json.dumps({"model": "bench", "prompt": "x", "max_tokens": steps, "stream": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write((HEAD.format(len(body)) + body).encode())
    while len(read_at) < steps:
        data = await reader.read(1 << 16)
        letters = sum(len(part) - len(part.lstrip(b"x")) for part in data.split(b'"text": "')[1:])
        read_at.extend([time.monotonic()] * letters)
    writer.close()


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(folder: Path, nats_url: str, streams: int, seconds: float) -> str:
    environment = {"NATS_URL": nats_url, "DISTSERVE_MODEL": str(folder), "DISTSERVE_SERVED_MODEL_NAME": "bench"}
    gateway = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.gateway.main"),
        env=os.environ | environment | {"DISTSERVE_PORT": "0"},
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert gateway.stderr is not None
    while '"serving"' not in (line := (await gateway.stderr.readline()).decode()):
        assert line, "the gateway ended"
    port = json.loads(line)["port"]
    steps = round(seconds / STEP_SECONDS)
    read_at: list[list[float]] = [[] for _ in range(streams)]
    async with (
        await NatsBus.connect(nats_url, name=SCHEDULER, role="scheduler") as scheduler,
        await NatsBus.connect(nats_url, name=DECODE, role="decode") as decode,
        asyncio.TaskGroup() as tasks,
    ):
        letter = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["x"]
        worker = PacedWorker(scheduler, decode, letter)
        beating = await worker.start(tasks)
        clients = [asyncio.create_task(read_stream(port, steps, times)) for times in read_at]
        while len(worker.works) < streams:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = cpu_seconds(gateway.pid)
        await worker.run(steps)
        await asyncio.gather(*clients)
        spent = cpu_seconds(gateway.pid) - before
        for task in beating:
            task.cancel()
    gateway.terminate()
    await gateway.communicate()
    delays = [read - sent for times in read_at for read, sent in zip(times, worker.published_at, strict=True)]
    took = max(times[-1] for times in read_at) - worker.published_at[0]
    rate = streams * steps / took
    return (
        f"{streams:8d} {rate:12.0f} {1e6 * spent / (streams * steps):15.1f} "
        f"{1e3 * statistics.median(delays):11.2f} {1e3 * statistics.quantiles(delays, n=100)[98]:11.1f}"
    )


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256])
    arguments.add_argument("--seconds", type=float, default=4.0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        server = NatsServer(folder)
        server.start()
        print(" streams     tokens/s  CPU us / token      p50 ms      p99 ms")
        for streams in options.streams:
            print(await measure(folder, server.url, streams, options.seconds), flush=True)
        server.stop()


if __name__ == "__main__":
    asyncio.run(main())
