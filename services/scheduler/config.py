"""The scheduler's settings, all from the environment, all checked here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.scheduler.limits import Limits
from services.scheduler.replanning.task import ReplanningSettings
from services.scheduler.simulator.profile import BadProfile, load_profile
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
    traffic: Path | None = None  # folder for the arrivals and lengths of what was served; None: not recorded
    replanning: ReplanningSettings | None = None  # None: off

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
            queue_seconds=env.number("QUEUE_SECONDS", max(defaults.queue_seconds, _seconds(env, "SLO_TTFT_MS"))),
            return_seconds=env.number("RETURN_TIMEOUT", defaults.return_seconds),
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
            traffic=env.path("TRAFFIC_DIR"),
            replanning=_replanning(env),
        )


def _seconds(env: Environment, name: str) -> float:
    return env.number(name, 0.0) / 1e3


def _replanning(env: Environment) -> ReplanningSettings | None:
    """On with a profile of the machine. The model is the profile's only one, or the one that is served."""
    name = env.text("PROFILE", "")
    if not name:
        return None
    ttft, tpot = _seconds(env, "SLO_TTFT_MS"), _seconds(env, "SLO_TPOT_MS")
    if not ttft or not tpot:
        raise BadSetting(
            "DISTSERVE_PROFILE is set: replanning needs DISTSERVE_SLO_TTFT_MS and DISTSERVE_SLO_TPOT_MS too"
        )
    try:
        profile = load_profile(name)
        model = profile.model("" if len(profile.models) == 1 else env.text("SERVED_MODEL_NAME", ""))
    except BadProfile as error:
        raise BadSetting(f"DISTSERVE_PROFILE={name!r}: {error}") from None
    if 1 not in model.times:
        raise BadSetting(f"DISTSERVE_PROFILE={name!r}: it has no figures of {model.name} on one device")
    file = str(Path(name).resolve()) if Path(name).is_file() else name
    return ReplanningSettings(profile=file, model=model.name, ttft_seconds=ttft, tpot_seconds=tpot)
