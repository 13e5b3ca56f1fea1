from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.bus.memory import MemoryBus
from shared.bus.nats import NatsBus
from tests.nats_server import NatsServer, nats_server

__all__ = ["nats_server"]

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that the test may stop, restart and pause."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "nats"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """`await connect(name)` gives one more connection to the same bus: in memory, then over a real server."""
    async with AsyncExitStack() as connections:
        if request.param == "memory":
            hub = MemoryBus()

            async def open_connection(name: str) -> Bus:
                return await connections.enter_async_context(hub.connect(name))
        else:
            url = request.getfixturevalue("nats_server").url

            async def open_connection(name: str) -> Bus:
                return await connections.enter_async_context(await NatsBus.connect(url, name=name, role="gateway"))

        yield open_connection
