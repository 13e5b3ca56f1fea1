"""`python -m services.scheduler.main`: the scheduler as a process."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack

import structlog

from services.scheduler.config import SchedulerConfig
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.journal import Journal
from services.scheduler.replanning.live import LiveReplanning
from services.scheduler.service import SchedulerService
from services.scheduler.traffic import Traffic, TrafficRecorder
from shared import telemetry
from shared.bus.interface import BusError
from shared.bus.nats import NatsBus
from shared.specs.ids import new_instance_id
from shared.specs.settings import BadSetting, end_misconfigured
from shared.telemetry.metrics import SchedulerMetrics
from shared.telemetry.status import status_server
from shared.worker.lifecycle import keep_what_is_loaded, stop_on_signals
from shared.worker.pulse import keep_health_file

log = structlog.get_logger()


async def serve(config: SchedulerConfig) -> None:
    instance = new_instance_id("scheduler")
    settings = telemetry.TelemetrySettings.from_env()
    telemetry.start("scheduler", instance, settings)
    stop = stop_on_signals()
    dispatcher = Dispatcher(config.limits)
    journal = None
    if config.journal is not None:
        to = config.journal
        journal = Journal(to.folder, file_bytes=to.file_bytes, files=to.files, snapshot=dispatcher.snapshot)
    recorder = TrafficRecorder(config.traffic) if config.traffic is not None else None
    metrics = SchedulerMetrics(instance, config.served_model)
    async with (
        status_server(settings, metrics) as status,
        await NatsBus.connect(config.bus, name=instance, role="scheduler") as bus,
        AsyncExitStack() as running,
    ):
        metrics.watch_bus(bus.troubles.counts)
        await keep_health_file(config.health_file, bus, instance)
        replanning = None
        if config.replanning is not None:
            replanning = await running.enter_async_context(
                LiveReplanning(bus, config.replanning, lambda: dispatcher.board.fleet, metrics.plan_epoch)
            )
        log.info("replanning", state="on" if replanning else "off: DISTSERVE_PROFILE is not set")
        traffic = Traffic([listener for listener in (recorder, replanning) if listener is not None])
        service = SchedulerService(bus, instance, dispatcher, journal, metrics, traffic=traffic)
        status.missing = service.missing
        keep_what_is_loaded()
        await service.run(stop)
    if recorder is not None:
        recorder.close()
    telemetry.stop()


def main() -> None:
    try:
        asyncio.run(serve(SchedulerConfig.from_env(os.environ)))
    except BadSetting as error:
        end_misconfigured("scheduler", error)
    except BusError as error:
        sys.exit(f"scheduler: {error}")


if __name__ == "__main__":
    main()
