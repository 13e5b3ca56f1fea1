"""Every parser of outside data, as a function of bytes: it may refuse them in its own way, and do nothing else."""

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.plan_file import understand
from cli.problems import Problem
from services.gateway.errors import ApiError
from services.gateway.model import load_model
from services.gateway.openai import read_chat, read_completion, read_json
from services.gateway.template import ChatTemplate
from services.scheduler.simulator.placement import BadPlacement, parse_placement
from services.scheduler.simulator.profile import SHIPPED, BadProfile, load_profile
from services.scheduler.simulator.workload import BadWorkload, read_trace
from shared.messages import handoff, instances, leadership, plans, requests, tokens, work
from shared.messages.codec import MalformedMessage, decode, encode
from shared.messages.requests import AbortRequest, SubmitRequest
from shared.messages.tokens import TokenBatch, TokenRow
from shared.specs.ids import InstanceId, RequestId
from shared.specs.model import BadModel
from shared.specs.model_config import read_model_spec
from shared.specs.record import Record
from shared.specs.sampling import Sampling
from shared.specs.settings import BadSetting
from shared.telemetry import traces
from shared.telemetry.trace_reader import Span, calls_in, spans_in
from shared.transport.address import UCX, pack_address, unpack_address
from shared.transport.interface import BadAddress
from tests.tiny_tokenizer import write_tokenizer

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))
CLASSES = [
    value
    for module in (handoff, instances, leadership, plans, requests, tokens, work)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]


@dataclass(frozen=True, slots=True)
class Target:
    parse: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]  # how it may say no
    seeds: tuple[bytes, ...]  # what it takes, to begin from

    def __call__(self, data: bytes) -> None:
        with suppress(*self.refusals):
            self.parse(data)


def _message(data: bytes) -> None:
    message = decode(data, *CLASSES)
    assert decode(encode(message), type(message)) == message


def _in_file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    """`read` of a file, or with the name "folder/file" of its folder, that holds the bytes."""
    file = SCRATCH / name
    file.parent.mkdir(parents=True, exist_ok=True)

    def parse(data: bytes) -> Any:
        file.write_bytes(data)
        return read(file.parent if "/" in name else file)

    return parse


def _weights(data: bytes) -> None:
    import torch

    from shared.engine.weights import Weights

    folder = SCRATCH / "weights"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(data)
    weights = Weights(folder, torch.device("cpu"), torch.float32, lambda *_: None)
    try:
        weights.tensor("a", (2, 2))
    finally:
        weights.close()


def _template(data: bytes) -> None:
    import jinja2

    try:
        template = ChatTemplate(data.decode(errors="replace"), {"bos_token": "<s>"}, 10_000)
    except jinja2.TemplateSyntaxError:
        return
    template.render([{"role": "user", "content": "hi"}])


def _served_model(name: str) -> Callable[[bytes], None]:
    """The folder of a model of which one file holds the bytes."""
    folder = SCRATCH / f"served-{name}"

    def parse(data: bytes) -> None:
        if not folder.exists():
            folder.mkdir(parents=True)
            write_tokenizer(folder)
            (folder / "config.json").write_text(json.dumps(_LLAMA))
        (folder / name).write_bytes(data)
        load_model(str(folder), "m").tokenizer.close()

    return parse


def _chat(data: bytes) -> None:
    body = read_json(data)
    for read in (read_chat, lambda body: read_completion(body, 10_000)):
        with suppress(ApiError):
            read(body)


def _plan(data: bytes) -> None:
    with suppress(ValueError, RecursionError):
        data = json.loads(data)
    understand(data, "plan")


def _spans(folder: Path) -> list[Span]:
    found = spans_in(folder, [_TRACE])[_TRACE]
    return [*calls_in(folder), *found]


_SUBMIT = SubmitRequest(
    request=RequestId("r"),
    attempt=1,
    gateway=InstanceId("gateway-1"),
    model="m",
    prompt=(1, 2),
    sampling=Sampling(max_tokens=3, temperature=0.5, seed=7),
)
_ROWS = (TokenRow(request=RequestId("r"), attempt=0, index=0, tokens=(5,), finish="stop"),)
_CHAT = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "n": 2, "stop": "a"}
_COMPLETION = {"model": "m", "prompt": [[1, 2]], "logit_bias": {"5": 1}, "stream": True, "temperature": 0.5, "top_p": 1}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}
_OPT = {
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
_GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 64,
}
_PLAN = {
    "format": 1,
    "placement": "tp1 + tp1",
    "targets": {"ttft_s": 0.4, "tpot_s": 0.04},
    "instances": {"prefill": {"count": 1, "tp": 1, "pp": 1}, "decode": {"count": 1, "tp": 1, "pp": 1}, "settings": {}},
}


_TENSORS = b'{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'
_WEIGHTS = len(_TENSORS).to_bytes(8, "little") + _TENSORS + bytes(16)
_TRACE = "5b8efff798038103d269b633813fc60c"
_ATTRIBUTES = [
    {"key": traces.REQUEST_ID, "value": {"stringValue": "a"}},
    {"key": traces.INPUT_TOKENS, "value": {"intValue": "7"}},
    {"key": traces.CLIENT_ID, "value": {"arrayValue": {"values": [{"stringValue": "b"}]}}},
]
_SPAN = {
    "traceId": _TRACE,
    "spanId": "eee19b7ec3c1b174",
    "parentSpanId": "",
    "name": traces.COMPLETIONS,
    "startTimeUnixNano": "1544712660000000000",
    "endTimeUnixNano": "1544712661000000000",
    "attributes": _ATTRIBUTES,
}
_SPAN_LINE = b"%b\n" % json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [_SPAN]}]}]}).encode()


def _tokenizers() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return ((Path(folder) / "tokenizer.json").read_bytes(),)


def _json(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


TARGETS: dict[str, Target] = {
    "http_body": Target(_chat, (ApiError,), _json(_CHAT, _COMPLETION)),
    "chat_template": Target(
        _template, (ApiError,), (b"{% for m in messages %}{{ m.content | upper }}{% endfor %}", b"{{ bos_token }}")
    ),
    "tokenizer_config": Target(
        _served_model("tokenizer_config.json"),
        (BadSetting,),
        _json(
            {"chat_template": "{{ bos_token }}", "bos_token": {"content": "<s>"}, "eos_token": "</s>"},
            {"chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}]},
        ),
    ),
    "special_tokens": Target(_served_model("special_tokens_map.json"), (BadSetting,), _json({"eos_token": "</s>"})),
    "template_file": Target(_served_model("chat_template.jinja"), (BadSetting,), (b"{{ bos_token }}",)),
    "tokenizer": Target(_served_model("tokenizer.json"), (BadSetting,), _tokenizers()),
    "bus_message": Target(
        _message,
        (MalformedMessage,),
        (
            encode(_SUBMIT),
            encode(AbortRequest(request=RequestId("r"), attempt=0)),
            encode(TokenBatch(source=InstanceId("decode-1"), step=1, rows=_ROWS)),
        ),
    ),
    "peer_address": Target(
        lambda data: unpack_address(UCX, data), (BadAddress,), (pack_address(UCX, bytes(16), b"endpoint"),)
    ),
    "model_config": Target(
        _in_file("model/config.json", read_model_spec),
        (BadModel,),
        _json(_LLAMA, _OPT, _GPT2),
    ),
    "weights": Target(_weights, (BadModel,), (_WEIGHTS,)),
    "request_trace": Target(
        _in_file("trace.jsonl", read_trace), (BadWorkload,), (b'{"arrival_s": 0.5, "input_len": 3, "output_len": 2}\n',)
    ),
    "profile": Target(
        _in_file("profile.json", lambda file: load_profile(str(file))),
        (BadProfile,),
        tuple(file.read_bytes() for file in SHIPPED.glob("*.json")),
    ),
    "plan": Target(_plan, (Problem,), _json(_PLAN)),
    "placement": Target(
        lambda data: parse_placement(data.decode(errors="replace")),
        (BadPlacement,),
        (b"2x tp2,pp1 + 1x tp1,pp1", b"2x tp1,pp1 colocated"),
    ),
    "span_file": Target(_in_file("spans/gateway-1.jsonl", _spans), (), (_SPAN_LINE,)),
}


def clean_up() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)
