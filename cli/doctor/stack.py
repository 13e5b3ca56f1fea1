"""Listens to a running stack with the operator's key, and tries what nobody should be able to do."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import httpx

from shared.bus.interface import BusError, NotPermitted
from shared.bus.nats import NatsBus
from shared.bus.settings import BusSettings
from shared.messages.instances import Beat
from shared.specs.ids import InstanceId

LISTEN_SECONDS = 2.5  # two beats of everybody, and a little
HTTP_SECONDS = 5.0

Lock = Literal["open", "wide", "locked"]  # anybody gets in | an identity may hear everything | neither


@dataclass(frozen=True, slots=True)
class Heard:
    beat: Beat
    lateness_seconds: float  # least difference between our clock at arrival and the sender's when it sent


@dataclass(slots=True)
class BusReport:
    url: str
    error: str = ""  # why it could not be reached; "" if it could
    lock: Lock = "locked"
    heard: dict[InstanceId, Heard] = field(default_factory=dict)


async def listen(settings: BusSettings) -> BusReport:
    report = BusReport(settings.shown_url)
    try:
        async with await NatsBus.connect(settings, name="doctor", role="operator") as bus:
            await bus.subscribe(Beat.SUBJECT.format(role="*", instance="*"), lambda beat: _hear(report, beat), Beat)
            await asyncio.sleep(LISTEN_SECONDS)
            report.lock = await _lock(settings, bus)
    except BusError as error:
        report.error = str(error)
    return report


async def _hear(report: BusReport, beat: Beat) -> None:
    lateness = time.time() - beat.sent_at
    before = report.heard.get(beat.instance)
    report.heard[beat.instance] = Heard(beat, min(lateness, before.lateness_seconds) if before else lateness)


async def _lock(settings: BusSettings, bus: NatsBus) -> Lock:
    try:
        async with await NatsBus.connect(replace(settings, nkey_seed_file=None), name="doctor", role="operator"):
            return "open"
    except BusError:
        pass  # as it should be
    try:
        await bus.subscribe(">", _ignore, Beat)
    except NotPermitted:
        return "locked"
    return "wide"


async def _ignore(_: Beat) -> None:
    pass


async def gateway_answer(url: str) -> str:
    """ "" if the gateway says that it is ready, else what it says or why it cannot be asked."""
    try:
        async with httpx.AsyncClient(timeout=HTTP_SECONDS) as client:
            answer = await client.get(f"{url.rstrip('/')}/ready")
    except httpx.HTTPError as error:
        return f"{type(error).__name__} {error}".strip()
    return "" if answer.status_code == httpx.codes.OK else f"HTTP {answer.status_code}: {answer.text[:200]}"
