from dataclasses import replace

import pytest

from cli.screen import curl_line
from cli.stack import Part, Stack, parts

STACK = Stack(
    model="/models/demo",
    served_name="demo",
    prefill=1,
    decode=2,
    colocated=False,
    host="127.0.0.1",
    port=8000,
    device="cpu",
    dtype="auto",
    drain_seconds=10.0,
)


def parts_of(stack: Stack, *, cores: int = 2, gpus: tuple[str, ...] = ()) -> dict[str, Part]:
    found = parts(
        stack,
        folders={"DISTSERVE_JOURNAL_DIR": "/run/j"},
        nats_url="nats://h:1",
        seeds={role: f"/run/keys/{role}.seed" for role in stack.wanted},
        cores=range(cores),
        gpus=gpus,
    )
    return {part.name: part for part in found}


def test_every_part_is_one_process_of_its_service():
    found = parts_of(STACK)
    assert sorted(found) == ["decode 1", "decode 2", "gateway", "prefill 1", "scheduler"]
    assert found["decode 2"].command[1:] == ("-m", "services.decode.main")
    assert len({part.log_name for part in found.values()}) == len(found)
    assert STACK.wanted == {"gateway": 1, "scheduler": 1, "prefill": 1, "decode": 2}


def test_several_schedulers_are_numbered():
    stack = replace(STACK, schedulers=2)
    assert {"scheduler 1", "scheduler 2"} < set(parts_of(stack))
    assert stack.wanted["scheduler"] == 2


def test_every_part_knows_the_bus_the_model_and_where_to_write():
    for part in parts_of(STACK).values():
        assert part.environment["NATS_URL"] == "nats://h:1"
        assert part.environment["DISTSERVE_SERVED_MODEL_NAME"] == "demo"
        assert part.environment["DISTSERVE_JOURNAL_DIR"] == "/run/j"


def test_every_part_gets_the_key_of_its_role_and_no_other():
    for part in parts_of(STACK).values():
        seeds = [value for value in part.environment.values() if value.endswith(".seed")]
        assert seeds == [f"/run/keys/{part.role}.seed"]


def test_only_the_gateway_is_told_the_api_keys():
    told = [
        part.role for part in parts_of(replace(STACK, api_keys="a,b")).values() if "a,b" in part.environment.values()
    ]
    assert told == ["gateway"]


@pytest.mark.parametrize("role", ["gateway", "scheduler"])
def test_the_latency_targets_are_told_in_milliseconds_and_none_that_were_not_given(role: str):
    told = parts_of(replace(STACK, slo_ttft_seconds=0.25, slo_tpot_seconds=0.0125))[role].environment
    assert (told["DISTSERVE_SLO_TTFT_MS"], told["DISTSERVE_SLO_TPOT_MS"]) == ("250", "12.5")
    assert not [name for name in parts_of(STACK)[role].environment if "SLO" in name]


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (3, "1"), (6, "2"), (64, "21")])
def test_the_cores_are_divided_between_the_engines(cores: int, threads: str):
    assert parts_of(STACK, cores=cores)["prefill 1"].environment["DISTSERVE_THREADS"] == threads


def test_pinned_engines_have_cores_of_their_own_and_share_them_when_there_are_too_few():
    def pinned(cores: int) -> list[str]:
        found = parts_of(replace(STACK, pinned=True), cores=cores)
        return [found[name].environment["DISTSERVE_CORES"] for name in ("decode 1", "decode 2", "prefill 1")]

    assert pinned(3) == ["0", "1", "2"]
    assert pinned(7) == ["0,1", "2,3", "4,5"]
    assert pinned(2) == ["0", "1", "0"]
    assert all("DISTSERVE_CORES" not in part.environment for part in parts_of(STACK).values())


def test_threads_can_be_chosen():
    assert parts_of(replace(STACK, threads=7))["decode 1"].environment["DISTSERVE_THREADS"] == "7"


def test_gpus_are_given_out_in_turn_and_shared_when_there_are_too_few():
    found = parts_of(STACK, gpus=("GPU-a", "GPU-b"))
    visible = {name: part.environment.get("CUDA_VISIBLE_DEVICES") for name, part in found.items()}
    assert visible == {
        "decode 1": "GPU-a",
        "decode 2": "GPU-b",
        "prefill 1": "GPU-a",
        "gateway": None,
        "scheduler": None,
    }


def test_colocated_has_decode_instances_that_prefill_and_no_others():
    stack = replace(STACK, colocated=True, prefill=0)
    found = parts_of(stack)
    assert "prefill 1" not in found
    assert found["decode 1"].environment["DISTSERVE_COLOCATED"] == "1"
    assert "prefill" not in stack.wanted


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("box.example", "http://box.example:8000"),
    ],
)
def test_the_url_is_one_that_a_client_here_can_use(host: str, url: str):
    assert replace(STACK, host=host).url == url


def test_the_curl_line_fits_the_model_and_the_keys():
    assert "/v1/chat/completions" in curl_line(STACK, chats=True)
    assert "/v1/completions" in curl_line(STACK, chats=False)
    assert "Authorization" not in curl_line(STACK, chats=True)
    assert "Authorization: Bearer" in curl_line(replace(STACK, api_keys="secret"), chats=True)
    assert "secret" not in curl_line(replace(STACK, api_keys="secret"), chats=True)


def test_the_settings_of_a_plan_reach_the_engines():
    found = parts_of(replace(STACK, engine_settings={"DISTSERVE_MAX_BATCH": "128"}))
    told = sorted(name for name, part in found.items() if part.environment.get("DISTSERVE_MAX_BATCH") == "128")
    assert told == ["decode 1", "decode 2", "prefill 1"]
