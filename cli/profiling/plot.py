"""A profile drawn: every point that was measured, beside what the fit says of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.figures import INK, PALETTE, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_profile(data: dict[str, Any], file: Path) -> None:
    """Prefill and decode times by batch and length, KV transfers by size, and the errors of all fits."""
    (name, model), *_ = data["models"].items()
    moved = data.get("transfer", {"fit": []})
    figure, axes = new_figure(2, 2, f"{name} on {data['device']['name']}")
    prefill, decode, transfer, errors = axes.flat
    a, b, c = model["parallel"]["1"]["prefill_ms"]
    _engine(prefill, model["fit"]["prefill"], lambda n, t: a + b * n * t + c * n * t * t)
    prefill.axvline(model["L_m"], color=INK, linewidth=0.8, linestyle=":")
    prefill.set(title=f"Prefill (dotted: L_m = {model['L_m']} tokens)", xlabel="tokens of each prompt")
    fixed, per_context, per_request = model["parallel"]["1"]["decode_small_ms"]
    _engine(decode, model["fit"]["decode"], lambda n, t: fixed + per_context * n * (t + 1) + per_request * n)
    decode.set(title="Decode step", xlabel="tokens of each context")
    _transfer(transfer, moved["fit"], data)
    _errors(errors, {**model["fit"], "transfer": moved["fit"]})
    save(figure, file)


def _engine(axis: "Axes", points: Sequence[dict[str, float]], fitted: Any) -> None:
    batches = sorted({point["batch"] for point in points})
    for batch, colour in zip(batches, PALETTE, strict=False):
        of_batch = [point for point in points if point["batch"] == batch]
        lengths = [point["length"] for point in of_batch]
        axis.plot(lengths, [fitted(batch, length) for length in lengths], color=colour, linewidth=1.2)
        axis.plot(
            lengths,
            [point["milliseconds"] for point in of_batch],
            color=colour,
            marker="o",
            linestyle="",
            markersize=4,
            label=f"{batch:g}",
        )
    axis.set_xscale("log", base=2)
    _logarithmic(axis)
    axis.set_ylabel("milliseconds")
    axis.legend(title="batch", fontsize=7, title_fontsize=7, ncols=2)


def _transfer(axis: "Axes", points: Sequence[dict[str, float]], data: dict[str, Any]) -> None:
    speed = data["device"]["link_gigabytes_per_second"]
    if not points:
        axis.set(title=f"KV transfer: given, {speed:g} GB/s")
        return
    sizes = [point["bytes"] / 1e6 for point in points]
    setup = data["transfer_setup_ms"]
    axis.plot(sizes, [setup + size / speed for size in sizes], color=PALETTE[1], linewidth=1.2, label="fit")
    axis.plot(sizes, [p["milliseconds"] for p in points], color=PALETTE[1], marker="o", linestyle="", markersize=4)
    axis.set_xscale("log")
    _logarithmic(axis)
    transport = data["transfer"]["transport"]
    axis.set(title=f"KV transfer over {transport}: {setup:.2f} ms + {speed:.1f} GB/s; hop {data['hop_ms']:.2f} ms")
    axis.set(xlabel="megabytes", ylabel="milliseconds")


def _logarithmic(axis: "Axes") -> None:
    from matplotlib.ticker import LogFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    axis.tick_params(which="minor", labelsize=7)


def _errors(axis: "Axes", fits: dict[str, Sequence[dict[str, float]]]) -> None:
    for (name, points), colour in zip(fits.items(), PALETTE, strict=False):
        errors = sorted(100 * abs(point["error"]) for point in points)
        shares = [(number + 1) / len(errors) for number in range(len(errors))]
        axis.plot(errors, shares, drawstyle="steps-post", color=colour, label=name)
    axis.set(title="Errors of the fit", xlabel="percent", ylabel="share of points below", ylim=(0, 1.02))
    axis.legend(fontsize=8)
