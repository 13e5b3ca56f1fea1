"""The page at /ui and what it shows: one HTML file, the state as JSON, and a request's waterfall from trace files."""

import asyncio
import base64
import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import structs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.gateway.errors import ApiError
from services.gateway.model import ServedModel
from services.gateway.openapi import VERSION
from services.gateway.service import GatewayService
from services.gateway.targets import LatencyTargets
from shared.messages.instances import Beat
from shared.telemetry import trace_reader
from shared.telemetry.waterfall import Waterfall, budgets, waterfalls

PAGE = Path(__file__).parent / "page" / "index.html"
SENT_AWAY = "Traces are not kept here: see the collector that they are sent to"
NOT_RECORDED = (
    "No traces are recorded: give all services one folder (DISTSERVE_TRACE_DIR), "
    "or a collector (OTEL_EXPORTER_OTLP_ENDPOINT)"
)


class Watching:
    def __init__(
        self,
        service: GatewayService,
        model: ServedModel,
        targets: LatencyTargets,
        trace_folder: Path | None,
        *,
        exported: bool,
    ) -> None:
        """`trace_folder`: of all services' trace files, if they are here. `exported`: they go to a collector."""
        self._service, self._model, self._targets = service, model, targets
        self._trace_folder = trace_folder
        self._no_traces = SENT_AWAY if exported else NOT_RECORDED
        self._page = PAGE.read_text()
        self._reading = asyncio.Lock()  # one waterfall at a time: it means reading files

    async def page(self, request: Request) -> Response:
        """Open to all, as it holds nothing: what it shows comes from the routes below, with a key if one is set."""
        script = self._page.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return Response(
            self._page,
            media_type="text/html; charset=utf-8",
            headers={"content-security-policy": policy, "cache-control": "no-cache"},
        )

    async def state(self, request: Request) -> Response:
        now, service = time.time(), self._service
        recent, targets = service.recent, self._targets
        return JSONResponse(
            {
                "version": VERSION,
                "model": self._model.name,
                "chats": self._model.template is not None,
                "missing": service.missing(),
                "live_requests": service.live_requests,
                "targets": {"ttft_seconds": targets.ttft_seconds, "tpot_seconds": targets.tpot_seconds},
                "traces": self._trace_folder is not None,
                "instances": [_instance(beat, age) for beat, age in service.topology.seen(time.monotonic())],
                "figures": recent.figures(now),
                "history": recent.history(now),
                "requests": [asdict(ended) for ended in recent.latest()],
            },
            headers={"cache-control": "no-store"},
        )

    async def waterfall(self, request: Request) -> Response:
        """The stages of a request that ended, as soon as all services have written theirs."""
        name = request.path_params["request"]
        if self._trace_folder is None:
            raise ApiError(404, self._no_traces, code="no_traces")
        async with self._reading:
            found = await asyncio.to_thread(_read, self._trace_folder, name)
        if found is None:
            raise ApiError(404, f"Nothing is known of '{name}' yet", code="unknown_request")
        parts = budgets(found, found.ttft_target_seconds, found.tpot_target_seconds)
        return JSONResponse(
            asdict(found)
            | {"budgets": [asdict(part) | {"met": part.met} for part in parts]}
            | {"gigabytes_per_second": [transfer.gigabytes_per_second for transfer in found.transfers]}
        )


def _read(folder: Path, name: str) -> Waterfall | None:
    call = next((call for call in trace_reader.calls_in(folder) if trace_reader.answers_to(call, name)), None)
    if call is None:
        return None
    found = waterfalls(call, trace_reader.spans_in(folder, [call.trace])[call.trace])
    return next((one for one in found if one.request == name), found[0])


def _instance(beat: Beat, age_seconds: float) -> dict[str, Any]:
    return {
        "instance": beat.instance,
        "role": beat.role,
        "age_seconds": age_seconds,
        "ready": beat.ready,
        "draining": beat.draining,
        "colocated": beat.colocated,
        "detail": beat.detail,
        "load": structs.asdict(beat.load),
        "capacity": structs.asdict(beat.capacity),
        "links": [structs.asdict(link) for link in beat.links],
    }
