"""The routes behind the page at /ui."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.gateway.config import GatewayConfig
from services.gateway.model import ServedModel
from services.gateway.targets import LatencyTargets
from shared.bus.memory import MemoryBus
from tests.integration.gateway.running_gateway import RunningGateway, eventually, run_gateway

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
KEY = {"authorization": "Bearer secret"}


@pytest.fixture
async def locked(config: GatewayConfig, model: ServedModel, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    targets = LatencyTargets(ttft_seconds=60.0)
    config = replace(config, api_keys=("secret",), targets=targets, trace_folder=tmp_path)
    async with run_gateway(config, model, MemoryBus()) as gateway:
        await gateway.backend.start()
        await gateway.ready()
        yield gateway


async def test_the_page_is_whole_and_open_and_may_load_nothing_from_elsewhere(locked: RunningGateway):
    page = await locked.http.get("/ui")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    for reference in ("src=", "http://", "https://", "@import", "url("):
        assert reference not in page.text.replace("http://www.w3.org/2000/svg", "")


async def test_what_the_page_shows_needs_the_key(locked: RunningGateway):
    for path in ("/ui/state", "/ui/requests/any"):
        assert (await locked.http.get(path)).status_code == 401
    assert (await locked.http.get("/ui/state", headers=KEY)).status_code == 200


async def test_the_state_has_instances_targets_and_the_last_requests(locked: RunningGateway):
    await locked.http.post("/v1/chat/completions", json=CHAT, headers=KEY | {"x-request-id": "mine"})
    state = (await locked.http.get("/ui/state", headers=KEY)).json()
    assert (state["model"], state["missing"], state["chats"]) == ("tiny", [], True)
    assert state["targets"] == {"ttft_seconds": 60.0, "tpot_seconds": None}
    assert {"scheduler", "prefill", "decode"} <= {one["role"] for one in state["instances"]}
    (request,) = state["requests"]
    assert request["request"].startswith("mine.")
    assert (request["output_tokens"], request["verdict"]) == (4, "met")
    assert state["figures"]["attainment"] == 1.0
    assert state["history"][-1]["good_per_second"] + state["history"][-2]["good_per_second"] > 0


async def test_a_failed_request_is_among_the_last_ones(gateway: RunningGateway):
    await gateway.backend.close()
    await eventually(gateway.service.missing)
    refused = await gateway.http.post("/v1/chat/completions", json=CHAT)
    assert refused.status_code == 503
    (request,) = (await gateway.http.get("/ui/state")).json()["requests"]
    assert (request["outcome"], request["ttft_seconds"]) == ("failed", None)


async def test_an_unknown_request_and_absent_traces_are_told_apart(locked: RunningGateway, gateway: RunningGateway):
    unknown = await locked.http.get("/ui/requests/any", headers=KEY)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_request")
    absent = await gateway.http.get("/ui/requests/any")
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "no_traces")
    assert "DISTSERVE_TRACE_DIR" in absent.json()["error"]["message"]
