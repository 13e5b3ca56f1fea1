import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.gateway.config import GatewayConfig
from services.gateway.model import ServedModel, load_model
from services.gateway.requests import Patience
from shared.bus.memory import MemoryBus
from tests.integration.gateway.running_gateway import RunningGateway, run_gateway
from tests.integration.gateway.scripted_backend import MODEL
from tests.nats_server import nats_server
from tests.recorded_spans import recorded_spans
from tests.tiny_tokenizer import END, write_tokenizer

__all__ = ["nats_server", "recorded_spans"]

CHAT_TEMPLATE = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "eos_token_id": 0,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer_config = {"eos_token": {"content": END}, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Iterator[ServedModel]:
    model = load_model(str(model_folder), MODEL)
    yield model
    model.tokenizer.close()


@pytest.fixture
def config(model_folder: Path) -> GatewayConfig:
    config = GatewayConfig.from_env({"DISTSERVE_MODEL": str(model_folder), "DISTSERVE_SERVED_MODEL_NAME": MODEL})
    return replace(config, patience=Patience(first=0.5, recovery=5.0))


@pytest.fixture
async def alone(config: GatewayConfig, model: ServedModel) -> AsyncIterator[RunningGateway]:
    """A gateway whose backend has not started."""
    async with run_gateway(config, model, MemoryBus()) as gateway:
        yield gateway


@pytest.fixture
async def gateway(alone: RunningGateway) -> RunningGateway:
    await alone.backend.start()
    await alone.ready()
    return alone
