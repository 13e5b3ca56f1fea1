"""Requests made from the gateway's own OpenAPI document, right ones and wrong ones: none may break it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from services.gateway.config import GatewayConfig
from services.gateway.model import ServedModel
from services.gateway.openapi import document
from services.gateway.requests import Patience
from shared.bus.memory import MemoryBus
from tests.integration.gateway.running_gateway import run_gateway
from tests.integration.gateway.scripted_backend import MODEL

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def schema(model: ServedModel, model_folder: Path) -> Iterator[OpenApiSchema]:
    """The document of a gateway that runs in a thread of its own."""
    config = GatewayConfig.from_env({"DISTSERVE_MODEL": str(model_folder), "DISTSERVE_SERVED_MODEL_NAME": MODEL})
    config = replace(config, patience=Patience(first=1.0, recovery=1.0))
    started, stop = threading.Event(), asyncio.Event()
    ports: list[int] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with run_gateway(config, model, MemoryBus()) as gateway:
            await gateway.backend.start()
            await gateway.ready()
            ports.append(gateway.port)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(5)
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{ports[0]}/openapi.json")
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


READS = [path for path, operations in document()["paths"].items() if "get" in operations]
WRITES = [path for path, operations in document()["paths"].items() if "post" in operations]
# What only the model can know, and no schema says.
BEYOND_THE_SCHEMA = {
    ("model", "model_not_found"),
    ("messages", "context_length_exceeded"),
    ("prompt", "context_length_exceeded"),
    ("prompt", "invalid_value"),  # empty, or with tokens outside of the vocabulary
    ("tokens", "invalid_value"),
    ("logit_bias", "invalid_value"),
    ("stop_token_ids", "invalid_value"),
    ("min_tokens", "invalid_value"),  # above max_tokens
    ("top_logprobs", "invalid_value"),  # without logprobs
    ("stream_options", "invalid_value"),  # without stream
    ("best_of", "unsupported_parameter"),  # unlike n
}


def examples(operation: APIOperation, mode: GenerationMode, test: Callable[[Case], None]) -> None:
    """Run the test with cases made from the operation's schema; right ones are for the model that there is."""

    def prepared(case: Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL
        test(case)

    strategy = operation.as_strategy(generation_mode=mode)
    limits = settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    limits(given(case=strategy)(lambda case: prepared(case)))()


@pytest.mark.parametrize("path", READS)
def test_no_reading_breaks_the_gateway(schema: OpenApiSchema, path: str) -> None:
    def test(case: Case) -> None:
        case.call_and_validate(checks=CHECKS)

    examples(schema[path]["get"], GenerationMode.POSITIVE, test)


@pytest.mark.parametrize("path", WRITES)
def test_whatever_the_document_allows_is_answered(schema: OpenApiSchema, path: str) -> None:
    def test(case: Case) -> None:
        response = case.call_and_validate(checks=CHECKS)
        if response.status_code != 200:
            error = response.json()["error"]
            assert (error["param"], error["code"]) in BEYOND_THE_SCHEMA, error

    examples(schema[path]["post"], GenerationMode.POSITIVE, test)


@pytest.mark.parametrize("path", WRITES)
def test_whatever_the_document_forbids_is_refused_and_breaks_nothing(schema: OpenApiSchema, path: str) -> None:
    def test(case: Case) -> None:
        case.call_and_validate(checks=[*CHECKS, negative_data_rejection])

    examples(schema[path]["post"], GenerationMode.NEGATIVE, test)
