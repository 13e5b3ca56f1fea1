"""What the simulator predicts of this machine, beside what a live run does: one trace at three rates.

    python -m tests.bench.bench_prediction [--requests 80] [--lengths 0.15] [--shares 0.3,0.6,0.9] [--out FILE]

Profiles this machine with as many threads as an instance has, draws a trace of chatbot-like requests, asks the
simulator for the goodput of one prefill and one decode instance, and serves the trace at shares of it: in virtual time,
and live by `./distserve up` under `./distserve bench`. Nothing is fitted to the live run.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.scheduler.planner.goodput import Promise, highest_rate
from services.scheduler.simulator.placement import parse_placement
from services.scheduler.simulator.profile import load_profile
from services.scheduler.simulator.simulation import Policy, Setup, simulate
from services.scheduler.simulator.workload import Trace, draw
from tests.system.running_up import ROOT, Up

THREADS = 1  # of each instance
SERVED = Policy(batch_tokens=512, max_batch=64)  # the services' own defaults
WARMUP_REQUESTS = 8
STAGES = {
    "prefill queue": "prefill_queue",
    "prefill": "prefill",
    "KV transfer": "transfer",
    "decode queue": "decode_queue",
    "decode": "decode",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=80, help="at each rate")
    parser.add_argument("--lengths", type=float, default=0.15, help="of the chatbot workload's")
    parser.add_argument("--shares", default="0.3,0.6,0.9", help="of the predicted goodput")
    parser.add_argument("--most-tokens", type=int, default=1024, help="of the largest batch that is profiled")
    parser.add_argument("--out", type=Path, help="JSON of everything")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    profile_file = folder / "profile.json"
    print(run("profile", "--threads", THREADS, "--most-tokens", options.most_tokens, "--out", profile_file), end="")
    trace = draw("chatbot", options.requests, seed=0).scaled(options.lengths)
    trace = trace.stretched(trace.rate)  # to a mean rate of 1/s
    setup = setup_of(profile_file)
    promise = promise_of(setup, trace)
    goodput, _ = highest_rate(setup, trace, promise, least=len(trace))
    rates = [round(float(share) * goodput, 2) for share in options.shares.split(",")]
    print(
        f"{len(trace)} requests of {mean(trace.inputs):.0f} + {mean(trace.outputs):.0f} tokens; targets TTFT "
        f"{promise.ttft:g} s, TPOT {promise.tpot:g} s; predicted goodput {goodput:.2f} requests/s"
    )
    measured = live(folder, trace, rates, promise)
    rows = []
    for rate, found in zip(rates, measured, strict=True):
        outcome = simulate(setup, trace.stretched(1 / rate))
        predicted = outcome.summary() | {"attainment": outcome.attainment(promise.ttft, promise.tpot)}
        rows.append({"rate": rate, "predicted": predicted, "measured": found})
        report(rate, predicted, found)
    if options.out:
        content = {"profile": json.loads(profile_file.read_text()), "goodput": goodput, "rates": rows}
        options.out.write_text(json.dumps(content, indent=1, default=str) + "\n")


def setup_of(profile_file: Path) -> Setup:
    profile = load_profile(str(profile_file))
    return Setup(profile=profile, model=profile.model(""), placement=parse_placement("tp1 + tp1"), policy=SERVED)


def promise_of(setup: Setup, trace: Trace) -> Promise:
    """Four times what a request of mean length takes alone, and twice a decode step of eight."""
    times = setup.model.times[1]
    prompt, answer = mean(trace.inputs), mean(trace.outputs)
    a, b, c = times.prefill
    alone = (a + b * prompt + c * prompt**2) / 1000
    a, b, c = times.decode_small
    step = (a + b * 8 * (prompt + answer / 2) + c * 8) / 1000
    return Promise(ttft=two_digits(4 * alone), tpot=two_digits(2 * step))


def two_digits(value: float) -> float:
    return round(value, 1 - math.floor(math.log10(value)))


def live(folder: Path, trace: Trace, rates: Sequence[float], promise: Promise) -> list[dict[str, Any]]:
    file, out = folder / "trace.jsonl", folder / "bench.json"
    rows = zip(trace.arrivals, trace.inputs, trace.outputs, strict=True)
    lines = (json.dumps({"arrival_s": at, "input_len": prompt, "output_len": answer}) for at, prompt, answer in rows)
    file.write_text("\n".join(lines) + "\n")
    served = Up(folder / "up", "--prefill", "1", "--decode", "1", "--threads", str(THREADS))
    try:
        warm = ("--workload", "fixed:64/16", "--requests", WARMUP_REQUESTS, "--rate", 4, "--out", folder / "warm.json")
        run("bench", "--url", served.url, *warm, valid=False)
        targets = ("--slo-ttft", promise.ttft, "--slo-tpot", promise.tpot, "--warmup", 0)
        listed = ",".join(map(str, rates))
        asked = ("--trace", file, "--requests", len(trace), "--rates", listed, *targets, "--out", out)
        print(run("bench", "--url", served.url, *asked, valid=False))
    finally:
        served.stop()
    return json.loads(out.read_text())["runs"]


def run(*arguments: object, valid: bool = True) -> str:
    """A command of ours. `valid`: it must also be content with its own run."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and valid:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + (done.stderr if done.returncode else "")


def report(rate: float, predicted: dict[str, Any], found: dict[str, Any]) -> None:
    print(f"\nat {rate:g} requests/s{'predicted':>20}{'measured':>12}{'error':>9}")
    for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s")):
        for which in ("mean", "p50", "p90"):
            line(f"{name} {which}, ms", 1e3 * predicted[key][which], 1e3 * found[key][which])
    for kind in ("ttft", "tpot", "joint"):
        ours, theirs = 100 * predicted["attainment"][kind], 100 * found["attainment"][kind]
        print(f"  {'kept ' + kind + ', percent':<24}{ours:>12.1f}{theirs:>12.1f}{ours - theirs:>+9.1f}")
    for name, key in STAGES.items():
        if name in found["stages_s"]:
            line(f"{name}, ms", 1e3 * predicted["stages"][key]["mean_s"], 1e3 * found["stages_s"][name])
    if not found["valid"]:
        print(f"  the load generator was late: {'; '.join(found['why_not'])}")


def line(what: str, ours: float, theirs: float) -> None:
    error = f"{ours / theirs - 1:>+9.0%}" if theirs else ""
    print(f"  {what:<24}{ours:>12.2f}{theirs:>12.2f}{error}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
