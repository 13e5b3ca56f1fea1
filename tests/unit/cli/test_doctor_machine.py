"""What the doctor makes of the facts of a machine."""

from dataclasses import replace

import pytest
from msgspec import structs

from cli.doctor.findings import Finding, exit_status, ok, problem, warning
from cli.doctor.gpus import Gpu, gpus_in, without_peer_access
from cli.doctor.machine import Isolation, PythonFacts, Resources, requirement_names
from cli.doctor.machine_verdicts import (
    judge_gpus,
    judge_memory_access,
    judge_pair,
    judge_python,
    judge_resources,
    judge_transports,
    judge_weights,
)
from cli.doctor.pair_report import PairReport
from shared.messages.instances import Link
from shared.specs.ids import InstanceId
from shared.transport.inventory import transports_in

PYTHON = PythonFacts(version=(3, 12), missing=(), others=())
ROOMY = Resources(cores=16, memory_bytes=64 << 30, locked_memory_bytes=None, open_files=None)
HOST = Isolation(container=False, own_pid_namespace=False, own_ipc_namespace=False, ptrace_scope=None, may_ptrace=False)
LINK = Link(peer=InstanceId("prefill-1"), ok=True, transport="cma", gigabytes_per_second=5.0)
GPU = Gpu(index=0, name="H100", memory_mebibytes=81559, used_mebibytes=0, driver="580")
CONTEXT = """
#            md 4  :  component 4  cma
#      resource 0  :  md 0  dev 0  flags -- self/memory
#      resource 1  :  md 1  dev 1  flags -- tcp/eth0
#      resource 2  :  md 1  dev 2  flags -- tcp/lo
#      resource 10  :  md 4  dev 0  flags -- rc_mlx5/mlx5_0:1
#      resource 11  :  md 4  dev 0  flags -- cuda_ipc/cuda
"""
ALONE = " \t\x1b[4mGPU0\t\x1b[0m\n GPU0\tX\t\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n"
THREE = " \tGPU0\tGPU1\tGPU2\n GPU0\tX\tOK\tNS\n GPU1\tOK\tX\tOK\n GPU2\tNS\tOK\tX\n\nLegend:\n  NS   = Not supported\n"


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.status for finding in findings}


def test_whatever_is_not_ok_comes_with_a_remedy():
    bad = [
        *judge_python(replace(PYTHON, missing=("httpx",), others=("torch 1 instead of 2",))),
        *judge_python(replace(PYTHON, version=(3, 10))),
        *judge_resources(Resources(cores=1, memory_bytes=1, locked_memory_bytes=1, open_files=1), 2),
        *judge_memory_access(replace(HOST, container=True, own_pid_namespace=True), "EPERM"),
        judge_transports(["tcp"], 0),
        judge_pair(PairReport(structs.replace(LINK, detail="slow"), "", 9.0)),
        *judge_gpus([replace(GPU, used_mebibytes=80000)], [(0, 1, "NS")]),
    ]
    bad = [finding for finding in bad if finding.status != "ok"]
    assert len(bad) == 13
    assert all(finding.remedy for finding in bad)


def test_a_machine_as_it_should_be_gives_no_warning():
    good = [
        *judge_python(PYTHON),
        *judge_resources(ROOMY, 8),
        *judge_memory_access(HOST, ""),
        judge_transports(["cma", "cuda_ipc", "tcp"], 8),
        judge_pair(PairReport(LINK, "", 9.0)),
        *judge_gpus([GPU, replace(GPU, index=1)], []),
        judge_weights("demo", 10 << 30, 64 << 30, 2, loaded=False),
    ]
    assert {finding.status for finding in good} == {"ok"}


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "problem"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "problem")]
)
def test_python_is_of_a_tested_version(version: tuple[int, int], status: str):
    assert judge_python(replace(PYTHON, version=version))[0].status == status


def test_a_missing_package_is_a_problem_and_another_version_a_warning():
    found = judge_python(replace(PYTHON, missing=("ucxx-cu13",)))
    assert [finding.status for finding in found if "ucxx-cu13" in finding.fact] == ["problem"]
    assert statuses(judge_python(replace(PYTHON, others=("torch 2.12 instead of 2.13",))))["packages"] == "warning"


def test_package_names_are_read_from_requirements_without_extras_and_versions():
    assert requirement_names("# a\nuvicorn[standard]\nPyYAML>=6 # why\n\n-r other.txt\nhf_xet==1\n") == [
        "uvicorn",
        "pyyaml",
        "hf-xet",
    ]


def test_little_memory_to_lock_matters_only_with_gpus():
    small = replace(ROOMY, locked_memory_bytes=64 << 10)
    assert set(statuses(judge_resources(small, 0)).values()) == {"ok"}
    assert statuses(judge_resources(small, 2))["memlock"] == "warning"


@pytest.mark.parametrize(
    ("isolation", "error", "remedy"),
    [
        (replace(HOST, ptrace_scope=1), "EPERM", "sysctl kernel.yama.ptrace_scope=0"),
        (replace(HOST, container=True), "EPERM", "cap_add: [SYS_PTRACE]"),
        (replace(HOST, container=True, may_ptrace=True), "EPERM", "security module"),
        (HOST, "ENOSYS", "seccomp"),
    ],
)
def test_the_remedy_for_cma_fits_what_keeps_it_from_working(isolation: Isolation, error: str, remedy: str):
    (found,) = [finding for finding in judge_memory_access(isolation, error) if finding.topic == "process memory"]
    assert found.status == "problem"
    assert remedy in found.remedy


def test_ptrace_scope_alone_is_no_reason_to_complain_when_reading_works():
    assert set(statuses(judge_memory_access(replace(HOST, ptrace_scope=1), "")).values()) == {"ok"}


def test_containers_with_namespaces_of_their_own_are_warned_of():
    apart = replace(HOST, container=True, own_pid_namespace=True)
    assert statuses(judge_memory_access(apart, ""))["namespaces"] == "warning"


def test_the_transports_are_read_from_what_ucx_prints():
    assert transports_in(CONTEXT) == ["cuda_ipc", "rc_mlx5", "self", "tcp"]


@pytest.mark.parametrize(
    ("names", "gpus", "status"),
    [
        (["cma", "tcp"], 0, "ok"),
        (["cma", "tcp"], 1, "problem"),
        (["cma", "cuda_ipc", "tcp"], 1, "ok"),
        (["tcp"], 0, "problem"),
        ([], 0, "problem"),
    ],
)
def test_ucx_must_have_the_transports_that_kv_needs(names: list[str], gpus: int, status: str):
    assert judge_transports(names, gpus).status == status


def test_a_slow_pair_is_a_warning_a_broken_one_a_problem_and_both_say_why():
    slow = judge_pair(PairReport(structs.replace(LINK, transport="tcp", detail="tcp instead of cma"), "", 9.0))
    broken = judge_pair(PairReport(structs.replace(LINK, ok=False, detail="3 bytes arrived wrong"), "", 9.0))
    assert (slow.status, broken.status) == ("warning", "problem")
    assert "tcp, 5.0 GB/s; a plain copy here: 9.0 GB/s" in slow.fact
    assert "tcp instead of cma" in slow.remedy
    assert "3 bytes arrived wrong" in broken.fact


def test_gpus_are_read_from_nvidia_smi():
    text = "0, NVIDIA H100 80GB HBM3, 81559, 0, 580.159.04\n1, Orin, [N/A], [N/A], 540\n"
    first, second = gpus_in(text)
    assert (first.name, first.memory_mebibytes, first.driver) == ("NVIDIA H100 80GB HBM3", 81559, "580.159.04")
    assert (second.index, second.memory_mebibytes) == (1, 0)
    assert gpus_in("") == []


@pytest.mark.parametrize(("text", "pairs"), [("", []), (ALONE, []), (THREE, [(0, 2, "NS")])])
def test_pairs_without_peer_access_are_read_from_the_matrix(text: str, pairs: list[tuple[int, int, str]]):
    assert without_peer_access(text) == pairs


def test_weights_that_do_not_fit_twice_are_a_warning():
    assert judge_weights("big", 40 << 30, 64 << 30, 2, loaded=False).status == "warning"
    assert judge_weights("big", 30 << 30, 64 << 30, 2, loaded=False).status == "ok"


def test_weights_that_a_running_stack_has_are_not_held_to_the_memory_that_it_left():
    found = judge_weights("big", 40 << 30, 1 << 30, 2, loaded=True)
    assert (found.status, found.fact) == (
        "ok",
        "big: weights of 40.00 GiB, in each instance of the running stack already",
    )


def test_the_exit_status_is_for_problems_and_if_strict_for_warnings():
    fine, poor, bad = ok("a", "b"), warning("a", "b", "c"), problem("a", "b", "c")
    assert [exit_status(found, strict=False) for found in ([fine], [fine, poor], [poor, bad])] == [0, 0, 1]
    assert [exit_status(found, strict=True) for found in ([fine], [fine, poor], [poor, bad])] == [0, 1, 1]
