"""Goodput over offered load, 0.5 to 4 times what the stack can compute, refusing by queue and by target.

    python -m tests.bench.bench_overload [--model FOLDER] [--seconds 8] [--loads 0.5,1,2,3,4] [--prompt 400]

A real `./distserve up` with one prefill and one decode instance; Poisson arrivals of prompts half to one and a half
times `--prompt` long, with short answers, so that prefill is what limits. Capacity is the rate at which a burst is
computed, the target ten times the mean time of one prompt. Goodput counts answers whose first token came in time.

"told" is the median Retry-After of the refusals, "true" how long it then was until the queue was empty (by target:
until it was short enough). "after" is the slowest first token of a few requests, at half the capacity, from five
seconds after the load on; "-" if one was refused.
"""

import argparse
import asyncio
import random
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.bench.calls import Answer, Call
from cli.bench.load import run_load
from cli.bench.server import Server, find_server
from services.scheduler.forecast import SAFETY
from tests.bench.bench_serving import ROOT, wait_until_ready

OUTPUT_TOKENS = 4
BURST = 40
WARMUP = 8
PROMPTS_IN_TARGET = 10
PAUSE_SECONDS = 5.0  # after a load; then service is normal
AFTERWARDS = 6


def main() -> None:
    options = arguments()
    loads = [float(load) for load in options.loads.split(",")]
    with running(options.model, "queue", None) as url:
        rate = asyncio.run(capacity(url, options.prompt))
        target = PROMPTS_IN_TARGET / rate
        print(f"capacity {rate:.2f} requests/s, first token wanted within {target:.2f} s")
        by_queue = asyncio.run(curve(url, loads, rate, target, options, allowed=0.0))
    with running(options.model, "slo", target) as url:
        asyncio.run(capacity(url, options.prompt))  # as the other has measured its rates
        by_slo = asyncio.run(curve(url, loads, rate, target, options, allowed=SAFETY * target))
    heads = "good/s refused  p99 TTFT s  told s  true s  after s"
    for name, rows in (("by queue", by_queue), ("by target", by_slo)):
        print(f"{name}\nload  offered/s   {heads}")
        for load, row in zip(loads, rows, strict=True):
            print(f"{load:4.1f} {load * rate:10.2f}   {row}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=ROOT / ".distserve" / "models" / "demo")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--loads", default="0.5,1,2,3,4")
    parser.add_argument("--prompt", type=int, default=400)
    return parser.parse_args()


@contextmanager
def running(model: Path, admission: str, target: float | None) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--model", str(model), "--admission", admission]
    up = subprocess.Popen(
        [*command, *([] if target is None else ["--slo-ttft", f"{target:.4f}"])], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", up)
        yield f"http://127.0.0.1:{port}"
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(30)


async def capacity(url: str, prompt: int) -> float:
    """Requests a second, of a burst."""
    server = await find_server(url, "", "", None, seed=1)
    await answers(server, [Call(0.1 * n, prompt, OUTPUT_TOKENS) for n in range(WARMUP)], 60)
    done = await answers(server, [Call(0.0, prompt, OUTPUT_TOKENS) for _ in range(BURST)], 60)
    firsts = sorted(answer.first for answer in done if answer.first is not None)
    return (len(firsts) - 1) / (firsts[-1] - firsts[0])


async def curve(
    url: str, loads: list[float], rate: float, target: float, options: argparse.Namespace, *, allowed: float
) -> list[str]:
    """`allowed`: the seconds of waiting from which on a request is refused; 0: only a full queue refuses."""
    server = await find_server(url, "", "", None, seed=2)
    rows = []
    for load in loads:
        chance, at, calls = random.Random(7), 0.0, list[Call]()
        while (at := at + chance.expovariate(load * rate)) < options.seconds:
            calls.append(Call(at, round(options.prompt * chance.uniform(0.5, 1.5)), OUTPUT_TOKENS))
        later = [options.seconds + PAUSE_SECONDS + 2 * n / rate for n in range(AFTERWARDS)]
        normal = [Call(due, options.prompt, OUTPUT_TOKENS, warms_up=True) for due in later]
        done = await answers(server, [*calls, *normal], later[-1] + 2 * target)
        rows.append(row(done[: len(calls)], done[len(calls) :], target, allowed, options.seconds))
    return rows


def row(done: list[Answer], afterwards: list[Answer], target: float, allowed: float, seconds: float) -> str:
    in_time = sum(answer.ttft is not None and answer.ttft <= target for answer in done)
    refused = [answer for answer in done if answer.status == 429]
    times = sorted(answer.ttft if answer.ttft is not None else float("inf") for answer in done if answer.status != 429)
    p99 = statistics.quantiles([min(t, 99.0) for t in times], n=100)[98] if len(times) > 1 else 0.0
    told, true = "-", "-"
    if refused:
        told = f"{statistics.median(answer.retry_after for answer in refused):.1f}"
        true = f"{statistics.median(max(0.0, wait_at(answer.call.due, done) - allowed) for answer in refused):.1f}"
    slowest = [answer.ttft for answer in afterwards if answer.ttft is not None]
    after = f"{max(slowest):.2f}" if len(slowest) == len(afterwards) else "-"
    return f"{in_time / seconds:6.2f} {len(refused) / len(done):7.0%} {p99:11.2f} {told:>7} {true:>7} {after:>8}"


def wait_at(now: float, done: list[Answer]) -> float:
    """How long it was from `now` until the last of those taken in before had its first token."""
    return max(
        (answer.first - now for answer in done if answer.call.due < now and answer.first is not None), default=0.0
    )


async def answers(server: Server, calls: list[Call], most_seconds: float) -> list[Answer]:
    run = await run_load(server, calls, "overload", lambda run: run.seconds > most_seconds)
    return run.answers


if __name__ == "__main__":
    main()
