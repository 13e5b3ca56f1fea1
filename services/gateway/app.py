"""The HTTP application: its parts put together, and which path leads where."""

import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from services.gateway.body import BodyReader
from services.gateway.boundary import Boundary, handle_exception
from services.gateway.config import GatewayConfig
from services.gateway.errors import ApiError
from services.gateway.generation import ChatCompletions, Completions, Generation
from services.gateway.model import ServedModel
from services.gateway.prompts import Prompts
from services.gateway.routes import Routes
from services.gateway.service import GatewayService


def build_app(config: GatewayConfig, service: GatewayService, model: ServedModel) -> ASGIApp:
    prompts = Prompts(model, service.topology)
    body = BodyReader(config.most_body_bytes, config.body_seconds)
    generation = Generation(
        service=service,
        model=model,
        prompts=prompts,
        body=body,
        send_seconds=config.send_seconds,
        keep_alive_seconds=config.keep_alive_seconds,
    )
    routes = Routes(service=service, model=model, prompts=prompts, body=body, started_at=int(time.time()))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(generation), methods=["POST"]),
            Route("/v1/completions", Completions(generation), methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{model:path}", routes.one_model),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/health", routes.health),
            Route("/live", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            Route("/version", routes.version),
            Route("/openapi.json", routes.openapi),
        ],
        exception_handlers={ApiError: handle_exception, HTTPException: handle_exception, Exception: handle_exception},
    )
    app.router.redirect_slashes = False
    return Boundary(app, config.api_keys, service.metrics)
