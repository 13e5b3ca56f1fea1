"""What `./distserve plan --out` writes, as a stack can start from it. Every complaint names the field."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.problems import Problem

FORMAT = 1
SETTINGS = ("DISTSERVE_MAX_BATCH", "DISTSERVE_PREFILL_BATCH_TOKENS")
ORDERS = ("prefill_priority", "chunked")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPlan:
    """Instances of one device each."""

    prefill: int  # 0: colocated
    decode: int
    settings: Mapping[str, str]  # environment of the engines
    ttft_seconds: float | None  # the targets that it was made for
    tpot_seconds: float | None


def read_plan(path: Path) -> StartingPlan:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise Problem(f"plan {path}: {error.strerror}") from error
    except ValueError as error:
        raise Problem(f"plan {path} is not JSON: {error}") from error
    return understand(data, str(path))


def understand(data: object, name: str) -> StartingPlan:
    """The plan in `data`. Problem with the name of the field that cannot be followed."""
    plan = _Fields(data, name, "")
    if plan.value("format") != FORMAT:
        raise Problem(f"plan {name}: format is {plan.value('format')!r}, {FORMAT} is known")
    if plan.value("placement") is None:
        raise Problem(f"plan {name}: placement is null: nothing was found that keeps the targets")
    instances = plan.inside("instances")
    prefill = instances.value("prefill")
    targets = plan.inside("targets")
    return StartingPlan(
        prefill=0 if prefill is None else _count(instances.inside("prefill")),
        decode=_count(instances.inside("decode")),
        settings=_settings(instances, colocated=prefill is None),
        ttft_seconds=targets.seconds("ttft_s"),
        tpot_seconds=targets.seconds("tpot_s"),
    )


def compose_line(plan: StartingPlan) -> str:
    """What to type to have it in containers."""
    settings = "".join(f"{name}={value} " for name, value in sorted(plan.settings.items()))
    return f"{settings}docker compose up --detach --scale prefill={plan.prefill} --scale decode={plan.decode}"


def _count(group: "_Fields") -> int:
    for field, what in (("tp", "tensor parallelism"), ("pp", "pipeline stages")):
        if group.whole(field) != 1:
            shape = f"{group.path}{field} is {group.whole(field)}"
            raise Problem(f"plan {group.name}: {shape}: {what} other than 1 cannot be served yet")
    return group.whole("count")


def _settings(instances: "_Fields", *, colocated: bool) -> dict[str, str]:
    given = instances.inside("settings")
    unknown = sorted(given.fields.keys() - set(SETTINGS))
    if unknown:
        raise Problem(f"plan {given.name}: {given.path}{unknown[0]} is no setting that a plan may have")
    settings = {name: str(given.whole(name)) for name in SETTINGS if name in given.fields}
    if colocated:
        order = instances.value("order")
        if order not in ORDERS:
            raise Problem(f"plan {given.name}: instances.order is {order!r}, it must be one of {', '.join(ORDERS)}")
        settings |= {"DISTSERVE_COLOCATED": "1", "DISTSERVE_COLOCATED_POLICY": order}
    return settings


class _Fields:
    """A JSON object and where it lies in the plan."""

    def __init__(self, data: object, name: str, path: str) -> None:
        if not isinstance(data, dict):
            raise Problem(f"plan {name}: {path.rstrip('.') or 'the file'} must be an object, it is {data!r:.80}")
        self.fields: dict[str, Any] = data
        self.name, self.path = name, path

    def value(self, field: str) -> Any:
        if field not in self.fields:
            raise Problem(f"plan {self.name}: {self.path}{field} is missing")
        return self.fields[field]

    def inside(self, field: str) -> "_Fields":
        return _Fields(self.value(field), self.name, f"{self.path}{field}.")

    def whole(self, field: str) -> int:
        value = self.value(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Problem(f"plan {self.name}: {self.path}{field} is {value!r}, it must be a whole number of at least 1")
        return value

    def seconds(self, field: str) -> float | None:
        value = self.fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise Problem(f"plan {self.name}: {self.path}{field} is {value!r}, it must be a number of seconds above 0")
        return value
