"""What a person sees of a running stack: traces in the terminal, metrics of every part, the page in a browser."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.specs.ids import InstanceId
from shared.telemetry.metrics import DecodeMetrics, GatewayMetrics, PrefillMetrics, SchedulerMetrics
from tests.system.browser import browser
from tests.system.real_prometheus import prometheus
from tests.system.running_up import ROOT, Up

OBSERVABILITY = ROOT / "deploy" / "observability"
RUNS = ROOT / ".distserve" / "run"
KEY = {"authorization": "Bearer secret"}
MADE = {"gateway": GatewayMetrics, "scheduler": SchedulerMetrics, "prefill": PrefillMetrics, "decode": DecodeMetrics}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DISTSERVE_SLO_TTFT_MS", "5000")
        environment.setenv("DISTSERVE_API_KEYS", "secret")
        started = Up(tmp_path_factory.mktemp("up") / "output")
    yield started
    assert started.stop() == 0, started.output


@pytest.fixture(scope="module")
def answer(stack: Up) -> dict:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "ignore_eos": True}
    headers = KEY | {"x-request-id": "seen", "x-llm-d-slo-tpot-ms": "0.001"}
    answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    answer.raise_for_status()
    return answer.json()


@contextmanager
def a_long_answer(stack: Up) -> Iterator[None]:
    """Runs for as long as somebody looks, however fast the engine is; then its client leaves."""
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{stack.url}/v1/completions", json=body, headers=KEY, timeout=30) as response:
        lines = response.iter_lines()
        next(lines)
        yield
        del lines  # named until here: httpx hangs up when an iterator that it gave out is collected


def folder_of(stack: Up) -> Path:
    (folder,) = RUNS.glob(f"*-{stack.process.pid}")
    return folder


def families(url: str) -> dict[str, list]:
    text = httpx.get(url, headers=KEY).raise_for_status().text
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def distserve(*arguments: str) -> str:
    command = [sys.executable, "-m", "cli", *arguments]
    environment = os.environ | {"COLUMNS": "110"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_request_that_has_just_ended_is_traced_by_the_id_its_client_has(stack: Up, answer: dict):
    traces = str(folder_of(stack) / "traces")
    shown = distserve("trace", answer["id"], "--folder", traces)
    for stage in ("prefill queue", "prefill", "KV transfer", "decode queue", "decode", "scheduler queue", "tokenize"):
        assert f"\n{stage}  " in shown
    assert "over cma" in shown
    assert "TTFT" in shown
    assert "of 5000.00 ms: met" in shown
    assert "of 0.00 ms: missed" in shown, "the target that the client named"
    assert distserve("trace", "seen", "--folder", traces) == shown
    assert "seen." in distserve("trace", "--last", "1", "--folder", traces)


def test_every_part_exports_every_metric_that_is_defined_for_it(stack: Up, answer: dict):
    targets = json.loads((folder_of(stack) / "metrics.json").read_text())
    assert {one["labels"]["job"] for one in targets} == set(MADE)
    for one in targets:
        role, (address,) = one["labels"]["job"], one["targets"]
        defined = {
            family.name
            for family in text_string_to_metric_families(MADE[role](InstanceId("x-1"), "x").render()[0].decode())
        }
        exported = families(f"http://{address}/metrics")
        assert defined <= exported.keys()
        assert httpx.get(f"http://{address}/ready").status_code == 200


def test_the_gateway_counts_what_its_client_saw(stack: Up, answer: dict):
    seen = families(f"{stack.url}/metrics")

    def total(name: str) -> float:
        family = next(samples for key, samples in seen.items() if name.startswith(key))
        return sum(sample.value for sample in family if sample.name == name)

    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:request_time_per_output_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "distserve_http_responses_total",
        "distserve_router_overhead_seconds_count",
    ):
        assert total(name) > 0, name
    (judged,) = (s for s in seen["distserve_goodput_requests"] if s.name.endswith("_total") and s.value)
    assert judged.labels == {"targets": "tpot_missed", "slo": "request"}
    assert [s.value for s in seen["distserve_slo_target_seconds"]] == [5.0]


def test_a_real_prometheus_takes_our_files_and_can_draw_every_dashboard(stack: Up, answer: dict, tmp_path: Path):
    with prometheus(tmp_path, OBSERVABILITY / "rules.yml", folder_of(stack) / "metrics.json") as api:
        api.until("count(up == 1)", "4")
        for dashboard in sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json")):
            for panel in json.loads(dashboard.read_text())["panels"]:
                for target in panel["targets"]:
                    api.query(target["expr"].replace("$__rate_interval", "1m"))
        assert api.query("sum(distserve_kv_stranded_blocks)") == ["0"]
        assert api.query("sum(vllm:generation_tokens_total) > bool 15") == ["1"]
        assert api.rules() == (OBSERVABILITY / "rules.yml").read_text().count("alert:")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (on Debian: apt install prometheus)")
@pytest.mark.parametrize(
    "check",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_promtool_finds_nothing_wrong(check: tuple[str, ...]):
    done = subprocess.run(["promtool", *check], cwd=OBSERVABILITY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_shows_the_system_and_a_person_can_click_through_it(stack: Up, answer: dict, tmp_path: Path):
    screenshots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with browser(tmp_path / "profile") as page:
        page.open(f"{stack.url}/ui")
        page.type("#key", "wrong").click("#key-form button")
        page.wait_for("#key-wrong", "not the right one")
        page.type("#key", "secret").click("#key-form button")
        page.wait_for("#ready", "ready")
        page.wait_for("#instances", "prefill-")
        page.wait_for("#links", "cma")
        page.wait_for("#requests", "TPOT missed")
        page.screenshot(screenshots / "page-light.png")

        page.click("#send")
        page.wait_for("#timing", "first text after")
        assert len(page.text("#answer")) > 20
        page.wait_for("#requests tr:nth-child(2)", "seen")

        page.click("#requests tr:nth-child(2)")
        page.wait_for("#stages", "KV transfer")
        page.wait_for("#stages", "over cma")
        page.wait_for("#stages", "TPOT")
        page.screenshot(screenshots / "page-stages.png")
        page.click("#detail-close")

        with a_long_answer(stack):
            page.wait_for("#instances .instance:last-child .blocks", "running")

        page.on_a_dark_phone()
        assert page.width_of_content() <= page.width(), "nothing is wider than the screen"
        page.screenshot(screenshots / "page-phone.png")
        assert page.complaints() == []
