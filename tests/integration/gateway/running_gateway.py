"""A gateway as its process runs it, but on a memory bus and inside the test."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import openai

from services.gateway.app import build_app
from services.gateway.config import GatewayConfig
from services.gateway.model import ServedModel
from services.gateway.server import GatewayServer, listen
from services.gateway.service import GatewayService
from shared.bus.memory import MemoryBus
from shared.specs.ids import InstanceId
from shared.telemetry.metrics import GatewayMetrics
from tests.integration.gateway.scripted_backend import INSTANCES, ScriptedBackend

EVENTUALLY_SECONDS = 5.0


async def eventually(condition: Callable[[], object]) -> None:
    """Until it holds: for what happens elsewhere, and tells nobody here."""
    async with asyncio.timeout(EVENTUALLY_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@dataclass(frozen=True)
class RunningGateway:
    hub: MemoryBus
    backend: ScriptedBackend
    service: GatewayService
    server: GatewayServer
    port: int
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI

    async def ready(self) -> None:
        await eventually(lambda: not self.service.missing())


@asynccontextmanager
async def run_gateway(config: GatewayConfig, model: ServedModel, hub: MemoryBus) -> AsyncIterator[RunningGateway]:
    instance = InstanceId("gateway-1")
    bus = hub.connect(instance)
    service = GatewayService(
        bus,
        GatewayMetrics(instance, model.name),
        instance,
        model.name,
        config.patience,
        config.request_seconds,
        config.most_requests,
        admission=config.admission,
    )
    await service.start()
    server = GatewayServer(build_app(config, service, model), config.most_connections, config.send_seconds)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    backend = ScriptedBackend({name: hub.connect(name) for name in INSTANCES}, model.tokenizer)
    key = config.api_keys[0] if config.api_keys else "none"
    tasks = [asyncio.create_task(service.run()), asyncio.create_task(server.serve(sockets=[listener]))]
    no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default would read all certificates of the system each time
    async with httpx.AsyncClient(base_url=url, timeout=10.0, verify=no_tls, trust_env=False) as http:
        own = openai.DefaultAsyncHttpxClient(verify=no_tls, trust_env=False)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=own) as client:
            yield RunningGateway(hub, backend, service, server, port, http, client)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for listening in server.servers:
        listening.close()
    server.cut_all()
    await service.close()
    await bus.close()
    await backend.close()
