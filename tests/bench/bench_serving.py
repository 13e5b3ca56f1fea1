"""What serving adds to the engine, on this machine, in one run: the whole system over HTTP beside the engine alone.

    python -m tests.bench.bench_serving [--model FOLDER] [--prefill 1] [--decode 1] [--streams 16]

One stream: TTFT and TPOT by prompt length, and from the traces what of them is engine, KV transfer and control plane
(everything else: HTTP, tokenizer, scheduler, NATS, queues). Then many streams: output tokens per second against one
engine in this process doing the same work, with as many threads as one instance has, and with all cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from cli import demo_model
from shared.engine.pieces import Draw, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.specs.sampling import Sampling
from shared.telemetry import traces

ROOT = Path(__file__).parents[2]
DEMO = ROOT / ".distserve" / "models" / "demo"
OUTPUT_TOKENS = 64
GREEDY = Sampling(max_tokens=OUTPUT_TOKENS, temperature=0.0)


@dataclass(frozen=True)
class Timing:
    trace_id: str
    ttft_seconds: float
    tpot_seconds: float


def main() -> None:
    options = arguments()
    model = options.model or DEMO
    if model == DEMO:
        demo_model.ensure(DEMO)
    threads = max(1, (os.cpu_count() or 1) // (options.prefill + options.decode))
    with running_stack(model, options.prefill, options.decode) as (url, folder):
        single = {length: asyncio.run(one_stream(url, length, options.repeats)) for length in options.prompts}
        together = asyncio.run(many_streams(url, options.streams, options.prompts[0]))
    stages = stage_seconds(folder)
    for length, timings in single.items():
        report_stream(length, timings, stages)
    alone = {
        count: engine_tokens_per_second(model, count, options.streams, options.prompts[0])
        for count in (threads, os.cpu_count() or 1)
    }
    work = f"{options.streams} streams, prompt {options.prompts[0]}, output {OUTPUT_TOKENS}"
    print(f"\n{work}: {together:.0f} tokens/s served")
    for count, rate in alone.items():
        print(f"  one engine alone, {count} threads: {rate:.0f} tokens/s; served / alone = {together / rate:.2f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder (default: the demo model)")
    parser.add_argument("--prefill", type=int, default=1)
    parser.add_argument("--decode", type=int, default=1)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--streams", type=int, default=16)
    return parser.parse_args()


@contextlib.contextmanager
def running_stack(model: Path, prefill: int, decode: int) -> Iterator[tuple[str, Path]]:
    """`./distserve up` until it is ready: its URL and the folder of its traces."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--model", str(model)]
    counts = ["--prefill", str(prefill), "--decode", str(decode), "--served-model-name", "bench"]
    before = set((ROOT / ".distserve" / "run").glob("*"))
    up = subprocess.Popen([*command, *counts], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, up)
        (folder,) = set((ROOT / ".distserve" / "run").glob("*")) - before
        yield url, folder / "traces"
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(30)


def wait_until_ready(url: str, up: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and up.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the stack did not become ready")


async def one_stream(url: str, prompt_tokens: int, repeats: int) -> list[Timing]:
    async with httpx.AsyncClient(timeout=120) as client:
        await stream(client, url, prompt_tokens, 0)
        return [await stream(client, url, prompt_tokens, 1 + number) for number in range(repeats)]


async def many_streams(url: str, streams: int, prompt_tokens: int) -> float:
    async with httpx.AsyncClient(timeout=120) as client:
        started = time.perf_counter()
        await asyncio.gather(*(stream(client, url, prompt_tokens, number) for number in range(streams)))
        return streams * OUTPUT_TOKENS / (time.perf_counter() - started)


async def stream(client: httpx.AsyncClient, url: str, prompt_tokens: int, variant: int) -> Timing:
    body = {
        "model": "bench",
        "prompt": prompt(prompt_tokens, variant),
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    started = time.perf_counter()
    async with client.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        times = [time.perf_counter() async for line in response.aiter_lines() if line.startswith("data: {")]
    spent = (times[-1] - times[0]) / (OUTPUT_TOKENS - 1)
    return Timing(trace_id, times[0] - started, spent)


def prompt(tokens: int, variant: int) -> list[int]:
    return [256 + (7 * index + 31 * variant) % 4000 for index in range(tokens)]


def stage_seconds(folder: Path) -> dict[str, dict[str, float]]:
    """Trace id -> span name -> seconds, from the trace files of all services."""
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    for path in folder.glob("*.jsonl*"):
        for line in path.read_text().splitlines():
            for span in spans_of(json.loads(line)):
                nanoseconds = int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])
                seconds[span["traceId"]][span["name"]] = nanoseconds / 1e9
    return seconds


def spans_of(record: dict) -> Iterator[dict]:
    for resource in record["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def report_stream(prompt_tokens: int, timings: Sequence[Timing], stages: dict[str, dict[str, float]]) -> None:
    ttft = statistics.median(timing.ttft_seconds for timing in timings)
    tpot = statistics.median(timing.tpot_seconds for timing in timings)
    found = [stages[timing.trace_id] for timing in timings if timing.trace_id in stages]
    forward = statistics.median(one[traces.PREFILL_FORWARD] for one in found)
    transfer = statistics.median(one[traces.KV_TRANSFER] for one in found)
    steps = statistics.median(one[traces.DECODE_GENERATE] for one in found) / (OUTPUT_TOKENS - 1)
    print(f"one stream, prompt {prompt_tokens} (p50 of {len(timings)})")
    print(f"  TTFT {1e3 * ttft:.1f} ms: engine {1e3 * forward:.1f}, control plane {1e3 * (ttft - forward):.1f}")
    print(f"  TPOT {1e3 * tpot:.2f} ms: decode {1e3 * steps:.2f}, rest {1e3 * (tpot - steps):.2f}")
    print(f"  KV transfer {1e3 * transfer:.2f} ms, once, between the first token and the second")


def engine_tokens_per_second(model: Path, threads: int, streams: int, prompt_tokens: int) -> float:
    """All prompts packed up to 512 tokens, then all together, one token a step: the same work without a system."""
    engine = Engine.load(EngineSettings(model=str(model), threads=threads))
    engine.use_threads()
    width = -(-(prompt_tokens + OUTPUT_TOKENS) // engine.block_tokens)
    blocks = [list(range(i * width, (i + 1) * width)) for i in range(streams)]
    prompts = [prompt(prompt_tokens, i) for i in range(streams)]
    generated: list[list[int]] = [[] for _ in range(streams)]
    at_once = max(1, 512 // prompt_tokens)

    def step(members: Sequence[int], first: bool) -> None:
        pieces = []
        for i in members:
            tokens = prompts[i] if first else generated[i][-1:]
            start = 0 if first else prompt_tokens + len(generated[i]) - 1
            pieces.append(Piece(tokens, start, blocks[i], Draw(GREEDY, prompts[i], generated[i])))
        for i, drawn in zip(members, engine.step(pieces), strict=True):
            assert drawn is not None
            generated[i].append(drawn.token)

    step(range(min(at_once, streams)), first=True)
    generated = [[] for _ in range(streams)]
    started = time.perf_counter()
    for begin in range(0, streams, at_once):
        step(range(begin, min(streams, begin + at_once)), first=True)
    for _ in range(OUTPUT_TOKENS - 1):
        step(range(streams), first=False)
    return streams * OUTPUT_TOKENS / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
