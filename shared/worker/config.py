"""What every instance with an engine is told at its start. Read once from the environment, every value checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.bus.settings import BusSettings
from shared.engine.settings import EngineSettings
from shared.specs.settings import BadSetting, Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceConfig:
    bus: BusSettings
    engine: EngineSettings
    served_model: str  # the name clients use
    transfer_seconds: float  # deadline of one KV transfer
    drain_seconds: float  # on SIGTERM: how long running requests may take to finish here
    step_seconds: float  # a step that takes longer hangs
    gpu_claim_folder: Path | None = None  # where the GPUs of this machine are shared out, if they are
    health_file: Path | None = None  # for `python -m shared.worker.health`

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> "InstanceConfig":
        env = Environment(variables)
        model = env.required("MODEL", "a model folder or a Hugging Face hub id")
        try:
            bus = BusSettings.from_env(variables)
        except ValueError as error:
            raise BadSetting(str(error)) from None
        engine = EngineSettings(
            model=model,
            device=env.text("DEVICE", "cpu"),
            dtype=env.choice("DTYPE", "auto", ("auto", "float32", "bfloat16", "float16")),
            quantization=env.choice("QUANTIZATION", "none", ("none", "int8")),
            threads=env.integer("THREADS", 0),
            cores=env.integers("CORES"),
            blocks=env.integer("KV_BLOCKS", 0) or None,
            block_tokens=env.integer("BLOCK_TOKENS", 16, least=1, most=1024),
            max_model_tokens=env.integer("MAX_MODEL_TOKENS", 0) or None,
        )
        return cls(
            bus=bus,
            engine=engine,
            served_model=env.text("SERVED_MODEL_NAME", model.rstrip("/").rpartition("/")[2]),
            transfer_seconds=env.number("TRANSFER_TIMEOUT", 10.0, least=0.1),
            drain_seconds=env.number("DRAIN_TIMEOUT", 30.0),
            step_seconds=env.number("STEP_TIMEOUT", 60.0, least=0.1),
            gpu_claim_folder=env.path("GPU_CLAIM_DIR"),
            health_file=env.path("HEALTH_FILE"),
        )
