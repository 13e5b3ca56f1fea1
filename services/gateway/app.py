"""The HTTP application: its parts put together, and which path leads where."""

import time

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from services.gateway.body import BodyReader
from services.gateway.boundary import Boundary
from services.gateway.config import GatewayConfig
from services.gateway.generation import ChatCompletions, Completions, Generation
from services.gateway.keys import KeyRing
from services.gateway.model import ServedModel
from services.gateway.prompts import Prompts
from services.gateway.routes import Routes
from services.gateway.service import GatewayService
from services.gateway.watching import Watching


def build_app(config: GatewayConfig, service: GatewayService, model: ServedModel) -> ASGIApp:
    prompts = Prompts(model, service.topology)
    body = BodyReader(config.most_body_bytes, config.body_seconds)
    generation = Generation(
        service=service,
        model=model,
        prompts=prompts,
        body=body,
        keep_alive_seconds=config.keep_alive_seconds,
        targets=config.targets,
    )
    routes = Routes(service=service, model=model, prompts=prompts, body=body, started_at=int(time.time()))
    watching = Watching(service, model, config.targets, config.trace_folder, exported=config.traces_exported)
    router = Router(
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
            Route("/ui", watching.page),
            Route("/ui/state", watching.state),
            Route("/ui/requests/{request}", watching.waterfall),
        ],
        redirect_slashes=False,
    )
    return Boundary(router, KeyRing(config.api_keys, config.key_limits), service.metrics)
