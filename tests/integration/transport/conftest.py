from collections.abc import AsyncIterator, Callable

import pytest

from shared.specs.ids import InstanceId
from shared.transport.interface import Transport
from shared.transport.loopback import LoopbackHub, LoopbackTransport
from shared.transport.ucx import UcxTransport

MakeTransport = Callable[[InstanceId], Transport]


@pytest.fixture(params=["loopback", "ucx over cma", "ucx over tcp"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("UCX_TLS", "tcp" if request.param.endswith("tcp") else "tcp,cma")
    return request.param


@pytest.fixture
async def make_transport(kind: str) -> AsyncIterator[MakeTransport]:
    """Transports of one kind that can reach each other, closed at the end of the test."""
    hub, made = LoopbackHub(), []

    def make(instance: InstanceId) -> Transport:
        made.append(LoopbackTransport(hub, instance) if kind == "loopback" else UcxTransport())
        return made[-1]

    yield make
    for transport in made:
        await transport.close()
