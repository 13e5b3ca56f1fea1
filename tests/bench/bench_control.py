"""What the control plane costs, whatever the engine: HTTP to scheduler to instances and back to the client's socket.

    python -m tests.bench.bench_control requests tokens --streams 1 32 256 1024 --instances 2
    python -m tests.bench.bench_control gateway scheduler

`requests`, `tokens`: a real gateway, scheduler and NATS server as processes, and real prefill and decode services
(in one process, with the loopback transport) whose engine only takes time. `requests`: answers of two tokens one after
the other on each stream, no time at all: what is left of the TTFT is the control plane's. `tokens`: one long answer on
each stream, a decode step takes --step-ms: from the end of the step to the client's read is the control plane's; and
afterwards requests beside them, one at a time.
`gateway`: a gateway alone, with as many tokens as it can write. `scheduler`: a scheduler alone, with as many requests
as it can place; see control_alone.

The clients compete for the cores; their own share is told beside the others'.
"""

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence

from tests.bench.control_alone import gateway_alone, scheduler_alone
from tests.bench.control_instances import MOST_TOKENS, map_clock
from tests.bench.control_stack import Call, Client, Stack, running_stack

PROBE_SECONDS = 1.5
STARTS_AT_ONCE = 64
PARTS = ("gateway", "scheduler", "nats", "instances", "clients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("requests", "tokens", "gateway", "scheduler"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 256, 1024])
    parser.add_argument("--instances", type=int, nargs="+", default=[2], help="half of them prefill, half decode")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=4.0, help="that one figure is measured")
    options = parser.parse_args()
    for what in options.what:
        if what == "gateway":
            asyncio.run(gateway_alone(options.streams, options.seconds))
        elif what == "scheduler":
            asyncio.run(scheduler_alone(options.instances, options.seconds))
        else:
            asyncio.run(served(what, options))


async def served(what: str, options: argparse.Namespace) -> None:
    if what == "requests":
        print("requests of 2 tokens, engine at once; CPU in us per request")
        print(f"instances streams  requests/s  TTFT p50 ms  p99 ms {_header()}")
    else:
        print(f"tokens, a step takes {options.step_ms:g} ms; added to a token; TTFT of others; CPU in us per token")
        print(f"instances streams    tokens/s     added p50 ms  p99 ms  TTFT p50 ms  p99 ms {_header()}")
    for count in options.instances:
        async with running_stack() as stack:
            clock = map_clock(stack.folder / "clock")
            await stack.start("scheduler", "services.scheduler.main")
            await stack.start("gateway", "services.gateway.main")
            step = 0.0 if what == "requests" else options.step_ms
            arguments = f"--prefill {count // 2} --decode {count // 2} --step-ms {step} --token {stack.token}"
            clock_file = ("--clock", str(stack.folder / "clock"))
            await stack.start("instances", "tests.bench.control_instances", *arguments.split(), *clock_file)
            await stack.ready()
            await asyncio.sleep(1.5)  # the scheduler listens for that long before it places
            seeds = itertools.count()
            for streams in options.streams:
                clients = [await Client.connect(stack.port) for _ in range(streams)]
                for first in range(0, streams, STARTS_AT_ONCE):
                    await asyncio.gather(*(c.ask(next(seeds), 2) for c in clients[first : first + STARTS_AT_ONCE]))
                if what == "requests":
                    row = await requests(stack, clients, seeds, options.seconds)
                else:
                    row = await tokens(stack, clients, seeds, options, clock)
                print(f"{count:9} {streams:7} {row}", flush=True)
                for client in clients:
                    client.close()


async def requests(stack: Stack, clients: Sequence[Client], seeds: "itertools.count[int]", seconds: float) -> str:
    before, began = stack.cpu_seconds(), time.monotonic()
    calls: list[Call] = []

    async def keep_asking(client: Client) -> None:
        while time.monotonic() - began < seconds:
            calls.append(await client.ask(next(seeds) % 4096, 2))

    await asyncio.gather(*(keep_asking(client) for client in clients))
    took, after = time.monotonic() - began, stack.cpu_seconds()
    spent = _spent(before, after, len(calls))
    return f"{len(calls) / took:11.0f} {_milliseconds([call.read_at[0] - call.asked_at for call in calls])} {spent}"


async def tokens(stack: Stack, clients: Sequence[Client], seeds, options: argparse.Namespace, clock) -> str:
    """What is spent is measured while all streams run and nothing else; then short requests come in beside them."""
    probe = await Client.connect(stack.port)
    steps = min(
        MOST_TOKENS, round(1000 * (options.seconds + PROBE_SECONDS + len(clients) / 200) / options.step_ms) + 10
    )
    asked: list[asyncio.Task[Call]] = []
    for first in range(0, len(clients), STARTS_AT_ONCE):
        starting = clients[first : first + STARTS_AT_ONCE]
        asked += [asyncio.create_task(client.ask(next(seeds), steps)) for client in starting]
        while any(len(client.call.read_at) < 3 for client in starting):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    before, began = stack.cpu_seconds(), time.monotonic()
    known = sum(len(client.call.read_at) for client in clients)
    await asyncio.sleep(options.seconds)
    after, took = stack.cpu_seconds(), time.monotonic() - began
    count = sum(len(client.call.read_at) for client in clients) - known
    probes = []
    while time.monotonic() - began < took + PROBE_SECONDS:
        probes.append(await probe.ask(next(seeds), 2))
        await asyncio.sleep(0.02)
    calls = await asyncio.gather(*asked)
    probe.close()
    added = [
        read - drawn
        for call in calls
        for read, drawn in zip(call.read_at[1:], clock[call.seed, 1 : len(call.read_at)], strict=True)
        if began < read < began + took
    ]
    first = _milliseconds([call.read_at[0] - call.asked_at for call in probes])
    return f"{count / took:11.0f} {_milliseconds(added)} {first} {_spent(before, after, count)}"


def _header() -> str:
    return " ".join(f"{part:>9}" for part in PARTS)


def _milliseconds(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"{1e3 * statistics.median(ordered):12.2f} {1e3 * ordered[int(0.99 * (len(ordered) - 1))]:7.2f}"


def _spent(before: dict[str, float], after: dict[str, float], count: int) -> str:
    return " ".join(f"{1e6 * (after[part] - before[part]) / count:9.1f}" for part in PARTS)


if __name__ == "__main__":
    main()
