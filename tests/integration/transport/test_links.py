"""The self-test of a pair, over every transport."""

import numpy as np
import pytest

from shared.messages.handoff import LinkTest, LinkTestAnswer
from shared.specs.ids import InstanceId
from shared.transport import selftest
from shared.transport.interface import Transport
from shared.transport.loopback import LoopbackHub, LoopbackTransport
from tests.integration.transport.conftest import MakeTransport

DECODE = InstanceId("decode-00000001")
PREFILL = InstanceId("prefill-00000001")


def scratch(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


async def run_link_test(decode: Transport, prefill: Transport, scratch=scratch) -> tuple[selftest.Link, list[LinkTest]]:
    asked: list[LinkTest] = []

    async def request(message: LinkTest) -> LinkTestAnswer:
        asked.append(message)
        return await selftest.answer_link_test(prefill, message, scratch)

    link = await selftest.test_link(decode, PREFILL, prefill.address, request, scratch, DECODE)
    return link, asked


async def test_a_good_link_reports_what_carries_it_and_how_fast(make_transport: MakeTransport, kind: str):
    link, asked = await run_link_test(make_transport(DECODE), make_transport(PREFILL))
    assert link.ok
    assert link.peer == PREFILL
    assert link.transport == kind.rpartition(" ")[2]
    assert link.gigabytes_per_second > 0.05
    assert asked[0].transfer != asked[1].transfer


async def test_tcp_within_one_machine_is_not_taken_for_granted(make_transport: MakeTransport, kind: str):
    link, _ = await run_link_test(make_transport(DECODE), make_transport(PREFILL))
    assert ("SYS_PTRACE" in link.detail) == (kind == "ucx over tcp")


async def test_wrong_bytes_fail_the_link():
    hub = LoopbackHub(faults={PREFILL: "garbles"})
    link, _ = await run_link_test(LoopbackTransport(hub, DECODE), LoopbackTransport(hub, PREFILL))
    assert not link.ok
    assert "1 of" in link.detail


@pytest.mark.parametrize("fault", ["silent", "dies"])
async def test_a_peer_that_hangs_or_dies_fails_the_link(fault, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selftest, "TIMEOUT_SECONDS", 0.05)
    hub = LoopbackHub(faults={PREFILL: fault})
    link, _ = await run_link_test(LoopbackTransport(hub, DECODE), LoopbackTransport(hub, PREFILL))
    assert not link.ok
    assert link.detail


async def test_a_peer_that_refuses_fails_the_link_with_its_reason(make_transport: MakeTransport):
    async def request(message: LinkTest) -> LinkTestAnswer:
        return LinkTestAnswer(status="failed", detail="out of memory")

    decode, prefill = make_transport(DECODE), make_transport(PREFILL)
    link = await selftest.test_link(decode, PREFILL, prefill.address, request, scratch, DECODE)
    assert not link.ok
    assert "out of memory" in link.detail


async def test_a_garbage_address_fails_the_link(make_transport: MakeTransport):
    async def request(message: LinkTest) -> LinkTestAnswer:
        raise AssertionError("nobody is to be asked")

    link = await selftest.test_link(make_transport(DECODE), PREFILL, b"garbage", request, scratch, DECODE)
    assert not link.ok


@pytest.mark.parametrize(("pieces", "piece_bytes"), [(0, 1024), (-1, 1024), (10**6, 1024), (8, 0), (8, 1 << 40)])
async def test_an_absurd_link_test_is_refused_without_allocating(
    make_transport: MakeTransport, pieces: int, piece_bytes: int
):
    def no_memory(size: int) -> np.ndarray:
        raise AssertionError(f"{size} bytes allocated")

    prefill = make_transport(PREFILL)
    message = LinkTest(puller=DECODE, address=prefill.address, transfer=1, pieces=pieces, piece_bytes=piece_bytes)
    answer = await selftest.answer_link_test(prefill, message, no_memory)
    assert answer.status == "failed"
