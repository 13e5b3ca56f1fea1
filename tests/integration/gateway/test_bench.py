"""`./distserve bench` as a process, against a real gateway whose backend answers what it is told to."""

import asyncio
import json
import sys
from pathlib import Path

from shared.messages.requests import Refused, SubmitRequest
from tests.integration.gateway.running_gateway import RunningGateway
from tests.integration.gateway.scripted_backend import MODEL

ROOT = Path(__file__).parents[3]
WORDS = "the quick brown fox jumps over it"


async def bench(gateway: RunningGateway, *arguments: str) -> tuple[int, str]:
    """Exit status and output. The lengths of answers are the backend's, whatever is asked for."""
    command = ("-m", "cli", "bench", "--url", f"http://127.0.0.1:{gateway.port}", "--warmup", "2", "--seed", "7")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *(*command, *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(40):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode()


async def test_every_request_is_sent_with_its_lengths_and_found_in_the_result(gateway: RunningGateway, tmp_path: Path):
    gateway.backend.text = WORDS
    file = tmp_path / "result.json"
    _, output = await bench(
        gateway, "--rates", "40,80", "--requests", "20", "--workload", "fixed:30/5", "--out", str(file)
    )
    measured = gateway.backend.submitted[-44:]
    assert {len(work.prompt) for work in measured} == {30}
    assert {
        (work.sampling.max_tokens, work.sampling.min_tokens, work.sampling.stop_token_ids) for work in measured
    } == {(5, 5, ())}
    assert len({work.prompt for work in measured}) == 22, "every request of a rate differs; the rates have the same"
    result = json.loads(file.read_text())
    assert result["server"]["model"] == MODEL
    assert [run["rate"] for run in result["runs"]] == [40, 80]
    for run in result["runs"]:
        assert len(run["answers"]) == 20
        assert all(row["ended"] and row["prompt_tokens"] == 30 and row["output_tokens"] == 5 for row in run["answers"])
        assert 0 < run["ttft_s"]["p50"] < run["whole_s"]["p50"]
    assert all(name in output for name in ("attainment.png", "latency.png", "slo-scale.png"))
    assert "20/20" in output


async def test_a_refused_request_has_missed_its_targets(gateway: RunningGateway, tmp_path: Path):
    def refuse(work: SubmitRequest) -> Refused | None:
        full = len(gateway.backend.submitted) % 2 == 0
        return Refused.of(work, "queue_full", "no room") if full else None

    gateway.backend.text, gateway.backend.refuse = WORDS, refuse
    file = tmp_path / "result.json"
    _, output = await bench(gateway, "--rate", "50", "--requests", "20", "--workload", "fixed:9/5", "--out", str(file))
    (run,) = json.loads(file.read_text())["runs"]
    assert run["failed"] == 10, output
    assert run["attainment"]["joint"] <= 0.5
    assert "10 requests failed, the first with: 429" in output


async def test_what_cannot_be_measured_is_one_line(gateway: RunningGateway):
    status, output = await bench(gateway, "--rate", "1", "--workload", "chatbot")
    assert (status, "--scale-lengths" in output) == (1, True)
