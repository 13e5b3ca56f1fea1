"""What the doctor makes of what it hears of a running stack."""

import pytest
from msgspec.structs import replace

from cli.doctor.findings import Finding
from cli.doctor.stack import BusReport, Heard, Lock
from cli.doctor.stack_verdicts import judge_bus, judge_fleet, judge_gateway
from shared.messages.instances import Beat, Link
from shared.specs.ids import InstanceId, Role

PREFILL = InstanceId("prefill-1")
LINK = Link(peer=PREFILL, ok=True, transport="cma", gigabytes_per_second=5.0)


def heard(role: Role, *links: Link, lateness: float = 0.002, **changes: object) -> Heard:
    beat = Beat(instance=InstanceId(f"{role}-1"), role=role, number=1, links=links, sent_at=1.0)
    return Heard(replace(beat, **changes), lateness)


GATEWAY, SCHEDULER = heard("gateway"), heard("scheduler", term=16)
FLEET = [GATEWAY, SCHEDULER, heard("prefill"), heard("decode", LINK)]


def bad(findings: list[Finding]) -> list[tuple[str, str]]:
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    return [(finding.topic, finding.status) for finding in findings if finding.status != "ok"]


def test_a_whole_fleet_is_fine_and_every_pair_has_its_speed_beside_a_plain_copy():
    found = judge_fleet(FLEET, 9.0)
    assert bad(found) == []
    (pair,) = [finding for finding in found if finding.topic == "prefill-1 to decode-1"]
    assert pair.fact == "cma, 5.0 GB/s; a plain copy here: 9.0 GB/s"


def test_a_link_between_gpus_is_not_held_to_a_copy_in_host_memory():
    link = replace(LINK, transport="cuda_ipc", gigabytes_per_second=210.0)
    (pair,) = [f for f in judge_fleet([*FLEET[:3], heard("decode", link)], 9.0) if f.topic == "prefill-1 to decode-1"]
    assert pair.fact == "cuda_ipc, 210.0 GB/s"


def test_nobody_to_be_heard_is_a_problem():
    assert bad(judge_fleet([], 9.0)) == [("instances", "problem")]


@pytest.mark.parametrize("role", ["gateway", "scheduler", "prefill", "decode"])
def test_a_role_that_nobody_has_is_a_problem(role: Role):
    found = judge_fleet([one for one in FLEET if one.beat.role != role], 9.0)
    assert [finding.fact for finding in found if finding.status == "problem"] == [f"no {role}"]


def test_colocated_instances_need_no_prefill_instance():
    assert bad(judge_fleet([GATEWAY, SCHEDULER, heard("decode", colocated=True)], 9.0)) == []


@pytest.mark.parametrize(("terms", "fine"), [((16, 0), True), ((0, 16, 0), True), ((0, 0), False), ((16, 32), False)])
def test_of_several_schedulers_one_leads_and_the_others_stand_by(terms: tuple[int, ...], fine: bool):
    schedulers = [
        heard("scheduler", instance=InstanceId(f"scheduler-{number}"), term=term) for number, term in enumerate(terms)
    ]
    found = judge_fleet([GATEWAY, *schedulers, *FLEET[2:]], 9.0)
    assert bad(found) == ([] if fine else [("instances", "warning")])


def test_a_scheduler_alone_that_does_not_lead_is_a_warning():
    found = judge_fleet([GATEWAY, heard("scheduler"), *FLEET[2:]], 9.0)
    assert bad(found) == [("instances", "warning")]


def test_an_instance_that_takes_no_work_says_why():
    found = judge_fleet([*FLEET[:2], heard("prefill", ready=False, detail="three steps failed"), FLEET[3]], 9.0)
    assert bad(found) == [("prefill-1", "problem")]
    assert any("three steps failed" in finding.fact for finding in found)


def test_a_draining_instance_is_a_warning():
    assert bad(judge_fleet([*FLEET[:3], heard("decode", LINK, draining=True)], 9.0)) == [("decode-1", "warning")]


@pytest.mark.parametrize(("lateness", "apart"), [(0.3, False), (-0.3, False), (2.0, True), (-2.0, True)])
def test_a_clock_that_is_off_is_a_warning(lateness: float, apart: bool):
    found = judge_fleet([*FLEET[:2], heard("prefill", lateness=lateness), FLEET[3]], 9.0)
    assert bad(found) == ([("prefill-1", "warning")] if apart else [])


@pytest.mark.parametrize(
    ("links", "status"),
    [
        ((), "warning"),
        ((replace(LINK, ok=False, detail="bytes arrived wrong"),), "problem"),
        ((replace(LINK, transport="tcp", detail="tcp instead of cma: share namespaces"),), "warning"),
    ],
)
def test_a_pair_that_is_untried_broken_or_slow_is_told(links: tuple[Link, ...], status: str):
    found = judge_fleet([*FLEET[:3], heard("decode", *links)], 9.0)
    assert bad(found) == [("prefill-1 to decode-1", status)]


@pytest.mark.parametrize(("lock", "status"), [("open", "warning"), ("wide", "warning"), ("locked", "ok")])
def test_a_server_that_lets_too_much_be_heard_is_a_warning(lock: Lock, status: str):
    found = {finding.topic: finding.status for finding in judge_bus(BusReport("nats://h:1", lock=lock))}
    assert found == {"NATS": "ok", "permissions": status}


def test_a_server_that_cannot_be_reached_is_a_problem_with_its_reason():
    (found,) = judge_bus(BusReport("nats://h:1", error="cannot connect: refused"))
    assert (found.status, found.fact) == ("problem", "cannot connect: refused")


def test_a_gateway_that_is_not_ready_is_a_problem():
    assert judge_gateway("http://h", "").status == "ok"
    assert judge_gateway("http://h", "HTTP 503: no decode instance").status == "problem"
