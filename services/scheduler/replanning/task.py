"""What the search process is told. Known to both sides of its pipe; no NumPy here: the scheduler needs none."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from services.scheduler.replanning.replanner import Layout
from services.scheduler.traffic import Call

SEARCH_SECONDS = 60.0  # then it is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanningSettings:
    profile: str  # a shipped one or a file
    model: str  # of the profile; empty: its only one
    ttft_seconds: float
    tpot_seconds: float
    share: float = 0.9  # of the requests that must keep both


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked: the best split of the present number of devices."""

    settings: ReplanningSettings
    now: Layout
    calls: tuple[Call, ...]
    kv_tokens: int  # that an instance has room for
    max_batch: int
    batch_tokens: int  # of a prefill batch; 0: nobody has said, so what the profile's times ask for

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Task":
        data: dict[str, Any] = json.loads(text)
        calls = tuple(Call(**call) for call in data["calls"])
        settings, now = ReplanningSettings(**data.pop("settings")), Layout(**data.pop("now"))
        return cls(**{**data, "settings": settings, "now": now, "calls": calls})
