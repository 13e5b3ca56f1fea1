"""`python -m services.decode.main`: one decode instance as a process."""

import asyncio
import os
import sys

from services.decode.config import DecodeConfig
from services.decode.service import DecodeService
from shared import telemetry
from shared.bus.interface import BusError
from shared.bus.nats import NatsBus
from shared.specs.ids import new_instance_id
from shared.specs.model import BadModel
from shared.specs.settings import BadSetting, end_misconfigured
from shared.transport.ucx import UcxTransport
from shared.worker.gpu_claim import own_gpus
from shared.worker.lifecycle import stop_on_signals
from shared.worker.loading import load_engine
from shared.worker.pulse import keep_health_file


async def serve(config: DecodeConfig) -> None:
    instance = new_instance_id("decode")
    telemetry.start("decode", instance, telemetry.TelemetrySettings.from_env())
    try:
        stop = stop_on_signals()
        with own_gpus(config.instance.gpu_claim_folder):
            engine = await asyncio.to_thread(load_engine, config.instance.engine)
            async with (
                await NatsBus.connect(config.instance.bus, name=instance, role="decode") as bus,
                UcxTransport(engine.cache.pool.device.index) as transport,
            ):
                await keep_health_file(config.instance.health_file, bus, instance)
                await DecodeService(config, instance, bus, transport, engine).run(stop)
    finally:
        telemetry.stop()


def main() -> None:
    try:
        asyncio.run(serve(DecodeConfig.from_env(os.environ)))
    except (BadSetting, BadModel) as error:
        end_misconfigured("decode", error)
    except BusError as error:
        sys.exit(f"decode: {error}")


if __name__ == "__main__":
    main()
