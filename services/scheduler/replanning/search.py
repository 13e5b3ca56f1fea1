"""The search in a process of its own: it computes for seconds, and may be killed at any moment.

`python -m services.scheduler.replanning.search` reads a Task as JSON from its input and writes what it found.
"""

import json
import math
import os
import signal
import sys
from dataclasses import asdict, replace

import numpy as np

from services.scheduler.planner.goodput import Promise, goodput
from services.scheduler.replanning.replanner import Found, Layout
from services.scheduler.replanning.task import SEARCH_SECONDS, Task
from services.scheduler.simulator.placement import Group, Placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Policy, Setup
from services.scheduler.simulator.workload import Trace
from services.scheduler.traffic import Call

DRAWS = 2  # independent resamples of the recent traffic
REQUESTS = 1000  # of each
TOLERANCE = 0.03
POLITE = 10  # serving comes first


def search(task: Task) -> list[Found]:
    """The present layout and every split that may be better, each with its goodput."""
    settings = task.settings
    profile = load_profile(settings.profile)
    longest = max(call.input_len + call.output_len for call in task.calls)
    model = profile.model(settings.model)
    kv_tokens = task.kv_tokens or model.kv_capacity(1, 1, profile.memory_bytes)
    model = replace(model, kv_tokens={(1, 1): kv_tokens}, max_tokens=min(max(longest, model.max_tokens), kv_tokens))
    policy = Policy(max_batch=task.max_batch or Policy().max_batch, batch_tokens=task.batch_tokens)
    promise = Promise(ttft=settings.ttft_seconds, tpot=settings.tpot_seconds, share=settings.share)
    traces = _traces(task.calls)

    def setup(layout: Layout, *, free_prefill: bool = False) -> Setup:
        placement = Placement(Group(layout.prefill, 1, 1), Group(layout.decode, 1, 1))
        return Setup(profile=profile, model=model, placement=placement, policy=policy, free_prefill=free_prefill)

    def rate(layout: Layout) -> float:
        return goodput(setup(layout), traces, promise, seeds=DRAWS, tolerance=TOLERANCE).rate

    devices = task.now.devices
    one, first_tokens = Layout(1, 1), replace(traces[0], outputs=[1] * len(traces[0]))
    prefill = goodput(setup(one), [first_tokens], replace(promise, tpot=math.inf), tolerance=TOLERANCE).rate
    most = max(devices * prefill, 1e-6)
    only_steps = replace(promise, ttft=math.inf)
    decode = goodput(setup(one, free_prefill=True), traces[:1], only_steps, tolerance=TOLERANCE, most=most).rate
    bounds = {split: min(split.prefill * prefill, split.decode * decode) for split in _splits(devices)}
    found = [Found(task.now, rate(task.now))]
    for split in sorted(bounds, key=lambda split: (-bounds[split], split)):
        best = max(one.goodput for one in found)
        if split != task.now and bounds[split] > best * (1 + TOLERANCE):
            found.append(Found(split, rate(split)))
    return found


def _splits(devices: int) -> list[Layout]:
    return [Layout(count, devices - count) for count in range(1, devices)]


def _traces(calls: tuple[Call, ...]) -> list[Trace]:
    """At mean rate 1/s. Gaps are drawn from those there were: a pause among them makes no law of its own."""
    gaps = np.diff([call.arrival_s for call in calls])
    if not gaps.sum() > 0:
        gaps = np.ones(1)
    traces = []
    for seed in range(DRAWS):
        random = np.random.default_rng(seed)
        picked = [calls[i] for i in random.integers(0, len(calls), REQUESTS)]
        arrivals = np.cumsum(random.choice(gaps / gaps.mean(), REQUESTS))
        trace = Trace(
            "recent", arrivals.tolist(), [one.input_len for one in picked], [one.output_len for one in picked]
        )
        traces.append(trace.stretched(trace.rate))
    return traces


def main() -> None:
    signal.alarm(math.ceil(SEARCH_SECONDS))  # whatever becomes of who started it
    os.nice(POLITE)
    found = search(Task.from_json(sys.stdin.buffer.read()))
    json.dump([asdict(one) for one in found], sys.stdout)


if __name__ == "__main__":
    main()
