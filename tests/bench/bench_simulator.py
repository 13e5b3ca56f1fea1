"""How fast the simulator serves and the planner searches.

python -m tests.bench.bench_simulator [--traces FOLDER] [--requests 3000] [--workers 2]

Serving: OPT-13B, one prefill and one decode GPU, the traces of FOLDER or the paper's three workloads and 512/64, at a
rate that keeps the placement busy; processor seconds of one core. Searching: OPT-66B, 4 nodes of 8 GPUs, chatbot.
A plain loop is timed in the same run: how many of its rounds a request takes can be compared between machines.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from heapq import heappop, heappush
from pathlib import Path

from services.scheduler.planner.candidates import Cluster
from services.scheduler.planner.goodput import Promise
from services.scheduler.planner.search import Question, search
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Setup, simulate
from services.scheduler.simulator.workload import Trace, draw, read_trace

RATES = {"fixed": 5.0, "code": 6.0, "human": 6.0, "chatb": 2.5, "share": 2.5, "summa": 2.0, "longb": 2.0}
PROFILE = load_profile("a100-80g-distserve")
LOOP_ROUNDS = 200_000


def serving(traces: list[Trace]) -> None:
    setup = Setup(profile=PROFILE, model=PROFILE.model("opt-13b"), placement=parse_placement("tp1 + tp1"))
    rounds: list[float] = []
    costs: list[float] = []
    for trace in traces:
        busy = trace.stretched(1 / RATES[trace.name[:5]])
        pairs = [(_seconds(_plain_loop), _seconds(partial(simulate, setup, busy))) for _ in range(5)]
        round_seconds, each = (min(times) for times in zip(*pairs, strict=True))
        round_seconds, each = round_seconds / LOOP_ROUNDS, each / len(trace)
        rounds.append(round_seconds)
        costs.append(each / round_seconds)
        kept = simulate(setup, busy).attainment(0.25, 0.1)["joint"]
        print(f"{trace.name:24} {1 / each:9,.0f} requests/s   ({len(trace)} requests, {kept:.1%} kept)")
    shown = " / ".join(f"{cost:.0f}" for cost in costs)
    print(f"plain loop: {1e-6 / min(rounds):.2f} million rounds/s; a request takes as long as {shown} of them")


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _plain_loop() -> None:
    heap: list[tuple[float, int]] = []
    latest: dict[int, float] = {}
    for number in range(LOOP_ROUNDS):
        instant = number * 0.61803398875 % 1.0
        heappush(heap, (instant, number))
        latest[number & 63] = instant
        if len(heap) > 16:
            heappop(heap)


def searching(workers: int) -> None:
    question = Question(
        profile=PROFILE,
        model=PROFILE.model("opt-66b"),
        cluster=Cluster(8, 4),
        traces=tuple(draw("chatbot", 4000, seed) for seed in range(3)),
        promise=Promise(ttft=2.5, tpot=0.15),
        rate=10.0,
        across_nodes=False,
        link_gigabytes_per_second=600.0,
    )
    begun, used = time.perf_counter(), _children_seconds()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = search(question, pool)
    seconds = time.perf_counter() - begun
    used = _children_seconds() - used
    print(f"search: {seconds:.1f} s, {workers} processes that used {used:.1f} s of processor time")
    print(f"{result.searches} searches for a rate, {result.simulations} simulations")
    print(f"best: {result.found[0].name}, {result.found[0].per_gpu:.3f} requests/s per GPU")


def _children_seconds() -> float:
    """Processor time of ended child processes: on a busy machine this says more than the clock."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.traces:
        traces = [read_trace(file).first(options.requests) for file in sorted(options.traces.glob("*.jsonl"))]
    else:
        names = ("fixed:512/64", "code", "chatbot", "summarization")
        traces = [draw(name, options.requests, seed=1) for name in names]
    serving(traces)
    searching(options.workers)


if __name__ == "__main__":
    main()
