"""What seeing costs, on this machine: the same load with tracing on and off in turn, and how large a scrape is.

    python -m tests.bench.bench_seeing [--rounds 3] [--streams 16] [--requests 96]

Short answers of the demo model, so that the services have as much to do as can be beside the engines. Every round
starts a new stack. Compare medians: what is left between equal rounds is what the machine does besides.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import httpx

from cli import demo_model
from tests.bench.bench_serving import DEMO, prompt, running_stack

PROMPT_TOKENS, OUTPUT_TOKENS = 32, 8
SINGLE_REQUESTS = 30


@dataclass(frozen=True)
class Round:
    requests_per_second: float
    latency_seconds: float  # p50 of single requests, one after the other
    trace_bytes: int  # per request
    scrape_bytes: dict[str, int]  # by job
    scrape_seconds: float  # the slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=96)
    options = parser.parse_args()
    demo_model.ensure(DEMO)
    rounds: dict[str, list[Round]] = defaultdict(list)
    for number in range(2 * options.rounds):
        tracing = ("off", "on")[number % 2]
        rounds[tracing].append(measure(tracing, options.streams, options.requests))
        print(f"tracing {tracing}: {rounds[tracing][-1].requests_per_second:.1f} requests/s", flush=True)
    for tracing, found in rounds.items():
        rate = statistics.median(one.requests_per_second for one in found)
        latency = statistics.median(one.latency_seconds for one in found)
        print(f"tracing {tracing:>3}: {rate:.1f} requests/s, one request {1e3 * latency:.2f} ms (medians)")
    newest = rounds["on"][-1]
    print(f"spans: {newest.trace_bytes} bytes per request")
    for job, size in newest.scrape_bytes.items():
        print(f"scrape of {job}: {size} bytes")
    print(f"slowest scrape: {1e3 * newest.scrape_seconds:.1f} ms")


def measure(tracing: str, streams: int, requests: int) -> Round:
    if tracing == "off":
        os.environ["DISTSERVE_TRACE_DIR"] = ""
    else:
        os.environ.pop("DISTSERVE_TRACE_DIR", None)
    with running_stack(DEMO, 1, 1) as (url, traces):
        asyncio.run(load(url, 1, 5))
        latency = asyncio.run(load(url, 1, SINGLE_REQUESTS))
        started = time.perf_counter()
        asyncio.run(load(url, streams, requests))
        rate = requests / (time.perf_counter() - started)
        sizes, slowest = scrape(traces.parent / "metrics.json")
    written = sum(path.stat().st_size for path in traces.glob("*.jsonl"))
    return Round(rate, latency, written // (5 + SINGLE_REQUESTS + requests), sizes, slowest)


async def load(url: str, streams: int, requests: int) -> float:
    """`requests` in all, `streams` at once; the median of their latencies."""
    latencies: list[float] = []
    numbers = iter(range(requests))

    async def worker(client: httpx.AsyncClient) -> None:
        for number in numbers:
            body = {
                "model": "bench",
                "prompt": prompt(PROMPT_TOKENS, number),
                "max_tokens": OUTPUT_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
            }
            started = time.perf_counter()
            (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()
            latencies.append(time.perf_counter() - started)

    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        await asyncio.gather(*(worker(client) for _ in range(streams)))
    return statistics.median(latencies)


def scrape(targets: Path) -> tuple[dict[str, int], float]:
    sizes, slowest = {}, 0.0
    for one in json.loads(targets.read_text()):
        started = time.perf_counter()
        text = httpx.get(f"http://{one['targets'][0]}/metrics", trust_env=False).content
        slowest = max(slowest, time.perf_counter() - started)
        sizes[one["labels"]["job"]] = len(text)
    return sizes, slowest


if __name__ == "__main__":
    main()
