"""`python -m services.scheduler.main`: the scheduler as a process."""

import asyncio
import os
import sys

from services.scheduler.config import SchedulerConfig
from services.scheduler.dispatcher import Dispatcher
from services.scheduler.journal import Journal
from services.scheduler.service import SchedulerService
from shared import telemetry
from shared.bus.interface import BusError
from shared.bus.nats import NatsBus
from shared.specs.ids import new_instance_id
from shared.specs.settings import BadSetting, end_misconfigured
from shared.telemetry.metrics import SchedulerMetrics
from shared.telemetry.status import status_server
from shared.worker.lifecycle import stop_on_signals
from shared.worker.pulse import keep_health_file


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
    metrics = SchedulerMetrics(instance, config.served_model)
    async with (
        status_server(settings, metrics) as status,
        await NatsBus.connect(config.bus, name=instance, role="scheduler") as bus,
    ):
        metrics.watch_bus(bus.troubles.counts)
        await keep_health_file(config.health_file, bus, instance)
        service = SchedulerService(bus, instance, dispatcher, journal, metrics)
        status.missing = service.missing
        await service.run(stop)
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
