"""How long an engine takes: iteration times of a model on a device by tensor parallelism, and what fits in memory."""

import json
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).resolve().parents[1] / "profiles"
FORMAT = 1


class BadProfile(ValueError):
    """A profile that cannot be used for what is asked; the text says why."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Iteration times of one tensor parallelism, all layers, milliseconds.

    prefill: a + b * sum(tokens) + c * sum(tokens^2).  decode step: a + b * sum(context) + c * requests, by batch size.
    """

    prefill: tuple[float, float, float]
    decode_small: tuple[float, float, float]
    decode_large: tuple[float, float, float]  # from `large_batch` requests on
    large_batch: int

    @property
    def batch_tokens(self) -> int:
        """L_m: from this length on a prefill does at least 90 % of the tokens per second that it can ever do."""
        a, b, _ = self.prefill
        return math.ceil(9 * a / b) if b else 2**30


@dataclass(frozen=True, slots=True)
class ModelProfile:
    name: str
    layers: int
    hidden: int
    weight_bytes: int
    kv_bytes_per_token: int
    max_tokens: int  # longest sequence
    derived: str  # how the figures were computed, if they were not measured
    times: dict[int, Coefficients]  # by tensor parallelism
    kv_tokens: dict[tuple[int, int], int]  # measured capacity by (tp, pp)

    def check(self, tp: int, pp: int, memory_bytes: int) -> None:
        """BadProfile with the reason if an instance of this shape cannot be."""
        if tp not in self.times:
            known = ", ".join(map(str, sorted(self.times)))
            raise BadProfile(f"{self.name} has no figures for tensor parallelism {tp} (known: {known})")
        if pp > self.layers:
            raise BadProfile(f"{self.name} has {self.layers} layers: {pp} pipeline stages are too many")
        if self.layers % pp:
            raise BadProfile(f"{self.name}: {self.layers} layers cannot be shared evenly by {pp} stages")
        if self.weight_bytes >= memory_bytes * tp * pp:
            what = f"{self.weight_bytes / 1e9:.0f} GB of weights on {tp * pp} x {memory_bytes / 1e9:.0f} GB"
            raise BadProfile(f"{self.name} does not fit: {what}")
        if self.kv_capacity(tp, pp, memory_bytes) < self.max_tokens:
            held = max(0, self.kv_capacity(tp, pp, memory_bytes))
            raise BadProfile(f"{self.name} tp{tp},pp{pp} keeps room for {held} KV tokens, a sequence may need more")

    def kv_capacity(self, tp: int, pp: int, memory_bytes: int) -> int:
        """KV tokens beside the weights: as measured, else 90 % of the memory less the weights."""
        measured = self.kv_tokens.get((tp, pp))
        if measured is not None:
            return measured
        return int((0.9 * memory_bytes * tp * pp - self.weight_bytes) / self.kv_bytes_per_token)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What an engine adds to every iteration, milliseconds."""

    prefill_stage_ms: float = 0.0  # of each pipeline stage
    iteration_ms: float = 0.0
    context_token_ms: float = 0.0  # of each token of prompt or context in the batch


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    source: str
    device: str
    memory_bytes: int  # of one device
    link_gigabytes_per_second: float  # between devices of a node
    hop_ms: float  # of the control plane, one way
    transfer_setup_ms: float  # of a transfer of KV, however small
    overhead: Overhead
    models: dict[str, ModelProfile]

    def model(self, name: str) -> ModelProfile:
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(sorted(self.models))
            raise BadProfile(f"profile {self.name} has no model {name!r} (known: {known})")
        return self.models[name]


def is_shipped(name_or_file: str) -> bool:
    return (SHIPPED / f"{name_or_file}.json").is_file()


def load_profile(name_or_file: str) -> Profile:
    """A shipped profile by its name, or a file."""
    path = SHIPPED / f"{name_or_file}.json" if is_shipped(name_or_file) else Path(name_or_file)
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
        raise BadProfile(f"no profile {name_or_file!r}: neither a file nor one of {known}") from error
    except ValueError as error:
        raise BadProfile(f"profile {path} is not JSON: {error}") from error
    try:
        return _profile(data, path.stem)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, BadProfile):
            raise
        raise BadProfile(f"profile {path} is not complete: {error!r}") from error


def _profile(data: dict[str, Any], name: str) -> Profile:
    if data.get("format") != FORMAT:
        raise BadProfile(f"profile {name} has format {data.get('format')!r}, {FORMAT} is known")
    device = data["device"]
    profile = Profile(
        name=data.get("name", name),
        source=data["source"],
        device=device["name"],
        memory_bytes=int(device["memory_bytes"]),
        link_gigabytes_per_second=float(device["link_gigabytes_per_second"]),
        hop_ms=float(data.get("hop_ms", 0.0)),
        transfer_setup_ms=float(data.get("transfer_setup_ms", 0.0)),
        overhead=Overhead(**data.get("overhead", {})),
        models={key: _model(key, value) for key, value in data["models"].items()},
    )
    if not profile.models:
        raise BadProfile(f"profile {name} has no model")
    positive = (profile.memory_bytes, profile.link_gigabytes_per_second)
    others = (profile.hop_ms, profile.transfer_setup_ms, *astuple(profile.overhead))
    if not all(0 < value < math.inf for value in positive) or not all(0 <= value < math.inf for value in others):
        raise BadProfile(f"profile {name}: memory and link must be positive, hops, transfers and overhead not negative")
    return profile


def _model(name: str, data: dict[str, Any]) -> ModelProfile:
    times = {int(tp): _coefficients(name, tp, value) for tp, value in data["parallel"].items()}
    if not times or min(times) < 1:
        raise BadProfile(f"{name} has no figures for any tensor parallelism, or for one below 1")
    kv_tokens = {}
    for key, tokens in data.get("kv_tokens", {}).items():
        tp, pp = (int(part) for part in key.split(","))
        kv_tokens[tp, pp] = int(tokens)
    model = ModelProfile(
        name=name,
        layers=int(data["layers"]),
        hidden=int(data["hidden"]),
        weight_bytes=int(data["weight_bytes"]),
        kv_bytes_per_token=int(data["kv_bytes_per_token"]),
        max_tokens=int(data["max_tokens"]),
        derived=data.get("derived", ""),
        times=times,
        kv_tokens=kv_tokens,
    )
    sizes = (model.layers, model.hidden, model.weight_bytes, model.kv_bytes_per_token, model.max_tokens)
    if min(sizes) < 1:
        raise BadProfile(f"{name}: every size must be at least 1")
    return model


def _coefficients(name: str, tp: str, data: dict[str, Any]) -> Coefficients:
    def three(key: str) -> tuple[float, float, float]:
        a, b, c = (float(value) for value in data[key])
        if not (0 < a < math.inf and 0 <= b < math.inf and abs(c) < math.inf):
            raise BadProfile(f"{name} tp{tp}: {key} = {a}, {b}, {c}: times must grow with work and be finite")
        return a, b, max(0.0, c)  # a negative quadratic term is an artefact of a fit

    large_batch = int(data["large_batch"])
    if large_batch < 1:
        raise BadProfile(f"{name} tp{tp}: large_batch = {large_batch}: batches have at least 1 request")
    return Coefficients(three("prefill_ms"), three("decode_small_ms"), three("decode_large_ms"), large_batch)
