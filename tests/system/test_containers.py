"""The images and docker-compose.yml, on a real engine. The tests share one stack, and follow each other in its life."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from shared.engine.settings import EngineSettings
from shared.engine.step import Engine
from tests.docker_engine import ComposeStack, docker, docker_engine
from tests.generation import generate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first test waits for the engine and the builds

PROMPTS = [[(7 * position + 131 * prompt) % 8000 + 100 for position in range(60 + 70 * prompt)] for prompt in range(4)]
TOKENS = 32
LIST_PACKAGES = (
    "import json, importlib.metadata as m; print(json.dumps([d.metadata['Name'].lower() for d in m.distributions()]))"
)


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    """Two prefill and two decode instances, ready."""
    with docker_engine():
        running = ComposeStack(f"distserve-test-{os.getpid()}")
        running.build()
        try:
            running.up({"prefill": 2, "decode": 2})
            yield running
        finally:
            running.down()


@pytest.fixture(scope="module")
def expected(stack: ComposeStack, tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The greedy answers of an engine in this process, with the very model that the containers use: texts of tokens."""
    folder = tmp_path_factory.mktemp("model")
    docker("cp", f"{stack.containers('decode')[0]}:/models/demo", str(folder))
    engine = Engine.load(EngineSettings(model=str(folder / "demo"), blocks=128, threads=1))
    tokenizer = Tokenizer.from_file(str(folder / "demo" / "tokenizer.json"))
    return [[tokenizer.decode([token]) for token in answer] for answer in generate(engine, PROMPTS, TOKENS)]


def stream(url: str, prompt: list[int], connects: int = 1) -> list[str]:
    """The texts of the tokens of a greedy answer, as they are streamed through the published port."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=connects - 1, timeout=60) as client:
        chunks = client.completions.create(
            model="demo",
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0,
            logprobs=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        scored = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    return [token for one in scored for token in one.tokens or ()]


@dataclass
class Load:
    """Clients that ask all the time."""

    url: str
    expected: list[list[str]]
    connects: int = 1  # how often each tries to be let in; nobody asks again for an answer that has begun
    answered: int = 0
    wrong: list[object] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _clients: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self._clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(len(PROMPTS))]
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()

    def until_answered(self, more: int) -> None:
        """Until so many more answers are complete."""
        wanted, deadline = self.answered + more, time.monotonic() + 120
        while self.answered < wanted and not self.wrong:
            assert time.monotonic() < deadline, f"{self.answered} answers, {wanted} wanted"
            time.sleep(0.05)

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                answer = stream(self.url, PROMPTS[number], self.connects)
            except openai.OpenAIError as error:
                self.wrong.append(error)
                return
            if answer != self.expected[number]:
                self.wrong.append((number, answer))
            self.answered += 1


def links(stack: ComposeStack) -> list[dict]:
    """What the decode instances found when they tried their links."""
    lines = [line[line.index("{") :] for line in stack.logs("decode").splitlines() if "kv_link_tested" in line]
    return [json.loads(line) for line in lines]


def until(fact: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_answers_through_the_published_port_have_the_tokens_of_an_engine_alone(
    stack: ComposeStack, expected: list[list[str]]
):
    assert [stream(stack.url, prompt) for prompt in PROMPTS] == expected


def test_the_stages_of_a_request_are_shown_by_the_gateway_and_by_the_command_line(stack: ComposeStack):
    body = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 8, "ignore_eos": True}
    answer = httpx.post(f"{stack.url}/v1/completions", json=body, timeout=60).raise_for_status().json()["id"]
    until(lambda: "KV transfer" in httpx.get(f"{stack.url}/ui/requests/{answer}", timeout=60).text)
    assert "over cma" in stack.run("cli", "trace", answer)


def test_the_doctor_looks_at_the_stack_from_a_container(stack: ComposeStack):
    told = stack.run("cli", "doctor")
    assert "1 gateway, 1 scheduler, 2 prefill, 2 decode" in told
    assert "hears the beats alone" in told
    assert "ucxx is not installed here" in told


def test_every_pair_of_instances_moves_kv_over_cma(stack: ComposeStack):
    until(lambda: len(links(stack)) >= 4)
    assert {(link["ok"], link["transport"]) for link in links(stack)} == {(True, "cma")}


def test_the_light_services_images_hold_neither_torch_nor_ucxx(stack: ComposeStack):
    def packages(image: str) -> set[str]:
        return set(json.loads(docker("run", "--rm", "--network", "none", image, "python", "-c", LIST_PACKAGES)))

    heavy = {"torch", "ucxx-cu13", "libucx-cu13", "numpy", "safetensors"}
    assert heavy <= packages("distserve-prefill"), "so they would be found"
    assert heavy.isdisjoint(packages("distserve-gateway"))
    assert packages("distserve-scheduler") & heavy == {"numpy"}, "which the planner computes with"


def test_prefill_and_decode_share_every_layer_but_their_own_code(stack: ComposeStack):
    prefill, decode = (stack.inspect(f"distserve-{role}")["RootFS"]["Layers"] for role in ("prefill", "decode"))
    assert prefill[:-2] == decode[:-2]
    assert prefill[-2:] != decode[-2:]


def test_every_container_is_confined_and_only_the_gateway_is_reached_from_outside(stack: ComposeStack):
    for container in stack.containers():
        found = stack.inspect(container)
        name, host = found["Name"], found["HostConfig"]
        assert found["Config"]["User"] == "10001:10001", name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["CapAdd"] in (None, ["SYS_PTRACE"], ["CAP_SYS_PTRACE"]), name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        published = [binding for bindings in (host["PortBindings"] or {}).values() for binding in bindings]
        wanted = [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}] if "gateway" in name else []
        assert published == wanted, name


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_gpu_file_gives_an_instance_every_gpu_and_has_it_claim_one(stack: ComposeStack, role: str):
    service = stack.config("docker-compose.yml", "docker-compose.gpu.yml")["services"][role]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert service["pid"] == service["ipc"] == "service:anchor"
    assert service["environment"]["DISTSERVE_DEVICE"] == "cuda"
    claims = service["environment"]["DISTSERVE_GPU_CLAIM_DIR"]
    start = f"python -P -m services.{role}.main 2>&1 || true"
    variables = ["--env", "DISTSERVE_MODEL=demo", "--env", f"DISTSERVE_GPU_CLAIM_DIR={claims}"]
    said = docker("run", "--rm", *variables, f"distserve-{role}", "sh", "-c", start)
    assert f"{role}: DISTSERVE_GPU_CLAIM_DIR is set, but nvidia-smi cannot tell the GPUs" in said


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_instances_are_scaled_up_and_down_under_load_without_a_failed_request(
    stack: ComposeStack, expected: list[list[str]], role: str
):
    with Load(stack.url, expected) as load:
        load.until_answered(4)
        tried = len(links(stack))
        stack.scale(role, 3)
        until(lambda: len(links(stack)) >= tried + 2)
        load.until_answered(8)
        stack.scale(role, 2)
        load.until_answered(8)
    assert load.wrong == []
    assert len(stack.containers(role)) == 2


@pytest.mark.parametrize("service", ["scheduler", "nats", "gateway", "prefill", "decode"])
def test_a_service_is_replaced_under_load_without_a_failed_request(
    stack: ComposeStack, expected: list[list[str]], service: str
):
    """All its containers at once. While the gateway is away its clients find the door closed, and knock again."""
    before = stack.containers(service)
    with Load(stack.url, expected, connects=20 if service == "gateway" else 1) as load:
        load.until_answered(2)
        stack.recreate(service, len(before))
        load.until_answered(6)
    assert load.wrong == []
    after = stack.containers(service)
    assert len(after) == len(before)
    assert set(after).isdisjoint(before)


def test_a_killed_prefill_container_costs_no_answer(stack: ComposeStack, expected: list[list[str]]):
    with Load(stack.url, expected) as load:
        load.until_answered(4)
        docker("kill", stack.containers("prefill")[0])
        load.until_answered(12)
    assert load.wrong == []
