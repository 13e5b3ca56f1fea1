"""The scheduler's settings, all from the environment, all checked here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.scheduler.limits import Limits
from shared.bus.settings import BusSettings
from shared.specs.settings import BadSetting, Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalSettings:
    folder: Path
    file_bytes: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    bus: BusSettings
    limits: Limits
    journal: JournalSettings | None  # None: off
    served_model: str  # for the labels of the metrics only
    health_file: Path | None = None  # for `python -m shared.worker.health`

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> "SchedulerConfig":
        env = Environment(variables)
        try:
            bus = BusSettings.from_env(variables)
        except ValueError as error:
            raise BadSetting(str(error)) from None
        defaults = Limits()
        limits = Limits(
            queue_requests=env.integer("QUEUE_REQUESTS", defaults.queue_requests, least=1),
            queue_tokens=env.integer("QUEUE_TOKENS", defaults.queue_tokens, least=1),
        )
        journal = JournalSettings(
            folder=Path(env.text("JOURNAL_DIR", ".distserve/journal")),
            file_bytes=env.integer("JOURNAL_FILE_BYTES", 16 << 20, least=1024),
            files=env.integer("JOURNAL_FILES", 8, least=1),
        )
        return cls(
            bus=bus,
            limits=limits,
            journal=journal if env.flag("JOURNAL", True) else None,
            served_model=env.text("SERVED_MODEL_NAME", ""),
            health_file=env.path("HEALTH_FILE"),
        )
