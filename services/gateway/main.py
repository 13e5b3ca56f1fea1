"""`python -m services.gateway.main`: one gateway as a process."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable

import structlog

from services.gateway.app import build_app
from services.gateway.config import GatewayConfig
from services.gateway.errors import unavailable
from services.gateway.model import load_model
from services.gateway.server import GatewayServer, listen, room_for_connections
from services.gateway.service import GatewayService
from shared import telemetry
from shared.bus.heart import Heart
from shared.bus.interface import BusError, BusUnavailable
from shared.bus.nats import NatsBus
from shared.specs.ids import new_instance_id
from shared.specs.settings import BadSetting, end_misconfigured
from shared.telemetry.metrics import GatewayMetrics
from shared.telemetry.status import status_server
from shared.worker.lifecycle import keep_what_is_loaded

log = structlog.get_logger()

FAREWELL_SECONDS = 3.0  # for error events to be written, and connections to close


class Stop:
    """The first SIGTERM or SIGINT lets running answers finish; the second ends them now."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.now = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.now if self.wanted.is_set() else self.wanted).set()


async def serve(config: GatewayConfig) -> None:
    instance = new_instance_id("gateway")
    settings = telemetry.TelemetrySettings.from_env()
    telemetry.start("gateway", instance, settings)
    stop = Stop()
    listener = listen(config.host, config.port)
    model = await asyncio.to_thread(load_model, config.model, config.served_model)
    metrics = GatewayMetrics(instance, model.name)
    metrics.default_targets(config.targets.ttft_seconds, config.targets.tpot_seconds)
    async with (
        status_server(settings, metrics) as status,
        await NatsBus.connect(config.bus, name=instance, role="gateway") as bus,
    ):
        metrics.watch_bus(bus.troubles.counts)
        service = GatewayService(
            bus,
            metrics,
            instance,
            model.name,
            config.patience,
            config.request_seconds,
            config.most_requests,
            admission=config.admission,
        )
        status.missing = service.missing
        await service.start()
        server = GatewayServer(
            build_app(config, service, model),
            room_for_connections(config.most_connections),
            config.send_seconds,
        )
        heart = Heart(bus, service.describe)
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(heart.run()), tasks.create_task(service.run())]
            serving = tasks.create_task(server.serve(sockets=[listener]))
            keep_what_is_loaded()
            log.info("serving", model=model.name, host=config.host, port=listener.getsockname()[1])
            await first_of(stop.wanted.wait(), bus.closed.wait())
            service.draining = True
            heart.changed()
            await end(server, serving, service, stop, config.drain_seconds)
            for task in background:
                task.cancel()
        await service.close()
        if bus.closed.is_set():
            raise BusUnavailable("the connection to NATS is closed for good")
    model.tokenizer.close()
    telemetry.stop()


async def end(
    server: GatewayServer, serving: asyncio.Task[None], service: GatewayService, stop: Stop, drain_seconds: float
) -> None:
    """Take no more connections; let running answers finish for a while; then tell their clients that it is over."""
    log.info("draining", requests=service.live_requests)
    server.should_exit = True
    await first_of(asyncio.shield(serving), stop.now.wait(), timeout_seconds=drain_seconds)
    service.give_up_all(unavailable("This server is shutting down"))
    await first_of(asyncio.shield(serving), timeout_seconds=FAREWELL_SECONDS)
    server.cut_all()
    await serving


async def first_of(*awaitables: Awaitable[object], timeout_seconds: float | None = None) -> None:
    """Until one is done, or time is up; the others are cancelled."""
    waiting = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(waiting, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def main() -> None:
    try:
        asyncio.run(serve(GatewayConfig.from_env(os.environ)))
    except BadSetting as error:
        end_misconfigured("gateway", error)
    except BusError as error:
        sys.exit(f"gateway: {error}")


if __name__ == "__main__":
    main()
