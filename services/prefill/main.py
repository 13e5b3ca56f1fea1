"""`python -m services.prefill.main`: one prefill instance as a process."""

import asyncio
import os
import sys

from services.prefill.config import PrefillConfig
from services.prefill.service import PrefillService
from shared import telemetry
from shared.bus.interface import BusError
from shared.bus.nats import NatsBus
from shared.specs.ids import new_instance_id
from shared.specs.model import BadModel
from shared.specs.settings import BadSetting, end_misconfigured
from shared.telemetry.metrics import PrefillMetrics
from shared.telemetry.status import status_server
from shared.transport.ucx import UcxTransport
from shared.worker.breakdown import InstanceBroken, end_broken
from shared.worker.gpu_claim import own_gpus
from shared.worker.lifecycle import keep_what_is_loaded, stop_on_signals
from shared.worker.loading import engine_loaded
from shared.worker.pulse import keep_health_file


async def serve(config: PrefillConfig) -> None:
    instance = new_instance_id("prefill")
    settings = telemetry.TelemetrySettings.from_env()
    telemetry.start("prefill", instance, settings)
    metrics = PrefillMetrics(instance, config.instance.served_model)
    try:
        stop = stop_on_signals()
        with own_gpus(config.instance.gpu_claim_folder):
            async with status_server(settings, metrics) as status:
                engine = await engine_loaded(config.instance.engine)
                async with (
                    await NatsBus.connect(config.instance.bus, name=instance, role="prefill") as bus,
                    UcxTransport(engine.cache.pool.device.index) as transport,
                ):
                    await keep_health_file(config.instance.health_file, bus, instance)
                    metrics.watch_bus(bus.troubles.counts)
                    service = PrefillService(config, instance, bus, transport, engine, metrics)
                    status.missing = service.missing
                    keep_what_is_loaded()
                    await service.run(stop)
    finally:
        telemetry.stop()


def main() -> None:
    try:
        asyncio.run(serve(PrefillConfig.from_env(os.environ)))
    except (BadSetting, BadModel) as error:
        end_misconfigured("prefill", error)
    except InstanceBroken as error:
        end_broken("prefill", error)
    except BusError as error:
        sys.exit(f"prefill: {error}")


if __name__ == "__main__":
    main()
