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
        cores=cores,
        gpus=gpus,
    )
    return {part.name: part for part in found}


def test_every_part_is_one_process_of_its_service():
    found = parts_of(STACK)
    assert sorted(found) == ["decode 1", "decode 2", "gateway", "prefill 1", "scheduler"]
    assert found["decode 2"].command[1:] == ("-m", "services.decode.main")
    assert len({part.log_name for part in found.values()}) == len(found)
    assert STACK.wanted == {"gateway": 1, "scheduler": 1, "prefill": 1, "decode": 2}


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


@pytest.mark.parametrize(("cores", "threads"), [(1, "1"), (2, "1"), (3, "1"), (6, "2"), (64, "21")])
def test_the_cores_are_divided_between_the_engines(cores: int, threads: str):
    assert parts_of(STACK, cores=cores)["prefill 1"].environment["DISTSERVE_THREADS"] == threads


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
