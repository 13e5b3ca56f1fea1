import socket

import httpx
import pytest

from cli.held_ports import hold_port, number_of
from shared.specs.ids import InstanceId
from shared.specs.settings import BadSetting
from shared.telemetry import TelemetrySettings
from shared.telemetry.metrics import PrefillMetrics
from shared.telemetry.status import status_server


async def test_it_tells_metrics_health_and_what_is_missing():
    with hold_port("127.0.0.1", 0) as held:
        settings = TelemetrySettings(metrics_port=number_of(held))
        metrics = PrefillMetrics(InstanceId("prefill-1"), "tiny")
        async with (
            status_server(settings, metrics) as status,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.metrics_port}", trust_env=False) as http,
        ):
            assert (await http.get("/health")).status_code == 200
            starting = await http.get("/ready")
            assert (starting.status_code, starting.json()["missing"]) == (503, ["it is starting"])
            status.missing = list
            assert (await http.get("/ready")).status_code == 200
            metrics.leases_expired.inc()
            text = await http.get("/metrics")
            assert text.headers["content-type"].startswith("text/plain; version=")
            assert "distserve_kv_lease_expired_total 1.0" in text.text
            assert (await http.get("/")).status_code == 404
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(f"http://127.0.0.1:{settings.metrics_port}/health")


async def test_without_a_port_there_is_no_server():
    async with status_server(TelemetrySettings(), PrefillMetrics(InstanceId("prefill-1"), "tiny")) as status:
        assert status.missing() == ["it is starting"]


async def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = TelemetrySettings(metrics_port=taken.getsockname()[1])
        with pytest.raises(BadSetting, match=f"DISTSERVE_METRICS_PORT={settings.metrics_port}"):
            async with status_server(settings, PrefillMetrics(InstanceId("prefill-1"), "tiny")):
                pass
