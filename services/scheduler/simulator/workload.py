"""What arrives: lengths and instants of requests, drawn from a law or read from a trace. Always the same for a seed."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class BadWorkload(ValueError):
    """A workload or trace that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival. Arrivals are in seconds."""

    name: str
    arrivals: list[float]
    inputs: list[int]
    outputs: list[int]

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def rate(self) -> float:
        """Mean requests per second, from the first arrival to the last."""
        span = self.arrivals[-1] - self.arrivals[0]
        return (len(self) - 1) / span if span > 0 else math.inf

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps: 1 for Poisson arrivals."""
        gaps = np.diff(self.arrivals)
        return float(gaps.std() / gaps.mean()) if len(gaps) and gaps.mean() > 0 else 1.0

    def first(self, count: int) -> "Trace":
        if not 0 < count <= len(self):
            raise BadWorkload(f"{self.name} has {len(self)} requests, {count} are wanted")
        return Trace(self.name, self.arrivals[:count], self.inputs[:count], self.outputs[:count])

    def stretched(self, factor: float) -> "Trace":
        """The same requests, each arriving at `factor` times its instant: one draw serves every rate."""
        return Trace(self.name, [arrival * factor for arrival in self.arrivals], self.inputs, self.outputs)

    def scaled(self, factor: float) -> "Trace":
        """The same arrivals with lengths of `factor` times as many tokens, at least 1."""
        inputs, outputs = ([max(1, round(length * factor)) for length in many] for many in (self.inputs, self.outputs))
        return Trace(self.name, self.arrivals, inputs, outputs)


@dataclass(frozen=True, slots=True)
class Law:
    """Lognormal lengths. Together with its answer a prompt keeps below `limit`: dropped, or cut, if it does not."""

    input_mean_log: float
    input_sigma: float
    output_mean_log: float
    output_sigma: float
    limit: int
    cut: bool

    def draw(self, count: int, random: np.random.Generator) -> tuple[list[int], list[int]]:
        inputs: list[int] = []
        outputs: list[int] = []
        while len(inputs) < count:
            z, y, cap = random.standard_normal(count), random.standard_normal(count), random.uniform(1900, 2048, count)
            prompt = np.rint(np.exp(self.input_mean_log + self.input_sigma * z))
            answer = np.maximum(1, np.rint(np.exp(self.output_mean_log + self.output_sigma * y)))
            if self.cut:
                answer = np.minimum(answer, 1000)
                prompt = np.minimum(np.minimum(prompt, self.limit - answer), np.rint(cap))
            kept = (prompt >= 4) & (prompt + answer <= self.limit)
            inputs += prompt[kept].astype(int).tolist()
            outputs += answer[kept].astype(int).tolist()
        return inputs[:count], outputs[:count]


# Fitted to the mean lengths that the paper gives for ShareGPT, HumanEval and LongBench (figure 7); the spreads to its
# preprocessing: a conversation of 2048 tokens or more is left out, a long document is cut.
LAWS = {
    "chatbot": Law(6.6240, 0.75, 4.9097, 1.05, 2047, cut=False),
    "code": Law(5.0279, 0.48, 4.2820, 0.78, 2047, cut=False),
    "summarization": Law(7.7495, 0.50, 3.7137, 1.30, 2040, cut=True),
}


def draw(workload: str, count: int, seed: int, cv: float = 1.0) -> Trace:
    """`count` requests at mean rate 1/s. `workload`: a law's name, or `fixed:INPUT/OUTPUT` tokens.

    `cv` is the coefficient of variation of the gaps (gamma; 1 is Poisson, 0 even). Lengths do not depend on it, and
    every rate is the same trace stretched: common random numbers.
    """
    if count < 1:
        raise BadWorkload(f"{count} requests make no workload")
    for_gaps, for_lengths = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    if workload.startswith("fixed:"):
        prompt, answer = _fixed(workload)
        inputs, outputs = [prompt] * count, [answer] * count
    elif workload in LAWS:
        inputs, outputs = LAWS[workload].draw(count, for_lengths)
    else:
        raise BadWorkload(f"no workload {workload!r}: {', '.join(sorted(LAWS))} or fixed:INPUT/OUTPUT")
    return Trace(workload, _arrivals(count, for_gaps, cv), inputs, outputs)


def resample(trace: Trace, count: int, seed: int, cv: float | None = None) -> Trace:
    """New requests like the recorded ones (paper section 4.1), at mean rate 1/s.

    Pairs of lengths are drawn from the recorded pairs, which keeps their dependence; gaps from a gamma law with the
    recorded coefficient of variation, or with `cv`.
    """
    for_gaps, for_lengths = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    picks = for_lengths.integers(0, len(trace), count).tolist()
    inputs, outputs = [trace.inputs[i] for i in picks], [trace.outputs[i] for i in picks]
    arrivals = _arrivals(count, for_gaps, trace.cv if cv is None else cv)
    return Trace(f"like {trace.name}", arrivals, inputs, outputs)


def as_recorded(trace: Trace, count: int, seed: int, cv: float | None = None) -> Trace:
    """The first `count` requests at mean rate 1/s, with the gaps they had, or gamma ones that vary by `cv`."""
    first = trace.first(count)
    if cv is not None:
        for_gaps, _ = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
        return Trace(trace.name, _arrivals(count, for_gaps, cv), first.inputs, first.outputs)
    if len(trace) > 1 and not math.isfinite(trace.rate):
        raise BadWorkload(f"{trace.name}: all requests arrive at one instant, so there is no rate; draw the gaps anew")
    return first.stretched(trace.rate) if len(trace) > 1 else first


def read_trace(path: Path) -> Trace:
    """A JSON object a line: `arrival_s`, `input_len`, `output_len`. Lengths only: no text.

    A folder is what the scheduler records: all its files, and a last line that is still being written is left out.
    """
    rows: list[tuple[float, int, int]] = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        rows += _rows(file, unfinished=path.is_dir())
    if not rows:
        raise BadWorkload(f"trace {path} is empty")
    rows.sort(key=lambda row: row[0])
    first = rows[0][0]
    return Trace(path.stem, [row[0] - first for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def _rows(file: Path, *, unfinished: bool) -> list[tuple[float, int, int]]:
    """(arrival, input, output) of every line; with `unfinished` without a last line that does not end."""
    try:
        text = file.read_text()
    except OSError as error:
        raise BadWorkload(f"trace {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadWorkload(f"trace {file} is not text: {error}") from error
    if unfinished:
        text = text[: text.rfind("\n") + 1]
    rows: list[tuple[float, int, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append((float(row["arrival_s"]), _tokens(row["input_len"]), _tokens(row["output_len"])))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BadWorkload(
                f"trace {file}, line {number}: wanted arrival_s, input_len and output_len ({error!r})"
            ) from error
        arrival, prompt, answer = rows[-1]
        if not math.isfinite(arrival) or prompt < 1 or answer < 1:
            raise BadWorkload(f"trace {file}, line {number}: lengths of at least 1 and a finite arrival are wanted")
    return rows


def _tokens(value: float | str) -> int:
    if int(value) != float(value):
        raise ValueError(f"{value} tokens")
    return int(value)


def _fixed(workload: str) -> tuple[int, int]:
    try:
        prompt, answer = (int(part) for part in workload.removeprefix("fixed:").split("/"))
    except ValueError as error:
        raise BadWorkload(f"{workload!r}: wanted fixed:INPUT/OUTPUT, for example fixed:512/64") from error
    if prompt < 1 or answer < 1:
        raise BadWorkload(f"{workload!r}: both lengths must be at least 1")
    return prompt, answer


def _arrivals(count: int, random: np.random.Generator, cv: float) -> list[float]:
    """The first at 0, then gaps of mean 1 s."""
    if not 0 <= cv <= 100:
        raise BadWorkload(f"a coefficient of variation of {cv} is not between 0 and 100")
    shape = 1 / cv**2 if cv else 0.0
    gaps = random.gamma(shape, 1 / shape, count - 1) if cv else np.ones(count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]
