from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.bus.memory import MemoryBus
from shared.bus.nats import NatsBus
from shared.engine.pieces import Draw, Piece
from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from shared.policy.finish import finish_of
from shared.specs.sampling import Sampling
from shared.transport.loopback import LoopbackHub, LoopbackTransport
from tests.cluster import Connect, MakeTransport
from tests.models import make_model
from tests.nats_server import NatsServer, nats_server
from tests.recorded_spans import recorded_spans

__all__ = ["nats_server", "recorded_spans"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def alone(model: Path):
    """One request at a time on one engine in this process: what every other way of serving is held to."""
    engine = Engine.load(EngineSettings(model=str(model), blocks=64, block_tokens=4, threads=1))

    def generate(prompt: list[int], sampling: Sampling) -> list[int]:
        return generate_alone(engine, prompt, sampling)

    return generate


def generate_alone(engine: Engine, prompt: list[int], sampling: Sampling) -> list[int]:
    generated: list[int] = []
    computed = 0
    blocks = list(range(engine.blocks))
    while True:
        tokens = [*prompt, *generated][computed:]
        (drawn,) = engine.step([Piece(tokens, computed, blocks, Draw(sampling, prompt, generated))])
        assert drawn is not None
        computed += len(tokens)
        generated.append(drawn.token)
        if finish_of(sampling, drawn.token, len(generated)):
            return generated


@pytest.fixture
def hub() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
async def connect(hub: MemoryBus) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as connections:

        async def open_connection(name: str) -> Bus:
            return await connections.enter_async_context(hub.connect(name))

        yield open_connection


@pytest.fixture
def wires() -> LoopbackHub:
    return LoopbackHub()


@pytest.fixture
def make_transport(wires: LoopbackHub) -> MakeTransport:
    return lambda instance: LoopbackTransport(wires, instance)


@pytest.fixture
async def connect_nats(nats_server: NatsServer) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as connections:

        async def open_connection(name: str) -> Bus:
            return await connections.enter_async_context(await NatsBus.connect(nats_server.url, name=name, role="test"))

        yield open_connection
