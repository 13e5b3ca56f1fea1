"""Waterfalls in a terminal."""

import time

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shared.telemetry.waterfall import Budget, Kind, Stage, Transfer, Waterfall, budgets

LEAST_BAR_WIDTH, MOST_BAR_WIDTH = 16, 60
OTHER_COLUMNS_WIDTH = 58
COLORS: dict[Kind, str] = {"paper": "cyan", "around": "blue", "bus": "magenta"}
STAGE_COLORS = {
    "prefill queue": "yellow",
    "prefill": "green",
    "KV transfer": "red",
    "decode queue": "bright_yellow",
    "decode": "cyan",
}
EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(console: Console, waterfall: Waterfall, ttft_seconds: float | None, tpot_seconds: float | None) -> None:
    """One request. Targets that are None are those that the gateway judged it by, if any."""
    console.print(render(waterfall, ttft_seconds, tpot_seconds, _bar_width(console)), soft_wrap=False)


def show_list(console: Console, found: list[Waterfall]) -> None:
    console.print(render_list(found, _bar_width(console)))


def _bar_width(console: Console) -> int:
    return min(MOST_BAR_WIDTH, max(LEAST_BAR_WIDTH, console.width - OTHER_COLUMNS_WIDTH))


def render(waterfall: Waterfall, ttft_seconds: float | None, tpot_seconds: float | None, width: int) -> RenderableType:
    """`width`: of the bars, in characters."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage", no_wrap=True)
    table.add_column("instance", style="dim", no_wrap=True)
    table.add_column("", width=width, no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for stage in waterfall.stages:
        name = Text(stage.name, style="bold" if stage.kind == "paper" else "dim")
        if waterfall.attempts > 1:
            name.append(f"  attempt {stage.attempt + 1}", style="dim")
        share = f"{100 * stage.seconds / waterfall.seconds:.1f} %" if waterfall.seconds else ""
        table.add_row(name, stage.instance, _bar(stage, waterfall.seconds, width), _ms(stage.seconds), share)
    table.add_row(Text("whole request", style="bold"), "", "", _ms(waterfall.seconds), "100.0 %")
    ttft = waterfall.ttft_target_seconds if ttft_seconds is None else ttft_seconds
    tpot = waterfall.tpot_target_seconds if tpot_seconds is None else tpot_seconds
    lines = [_transfer(transfer) for transfer in waterfall.transfers]
    lines += [_budget(budget) for budget in budgets(waterfall, ttft, tpot)]
    return Group(_headline(waterfall), table, *lines, Text())


def render_list(found: list[Waterfall], width: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ended", no_wrap=True)
    table.add_column("request", overflow="fold")
    for title in ("in", "out", "TTFT ms", "TPOT ms", "whole ms"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("stages", width=width, no_wrap=True)
    for one in found:
        ended = time.strftime("%H:%M:%S", time.localtime(one.started_ns / 1e9 + one.seconds))
        times = (_ms_or_dash(one.ttft_seconds), _ms_or_dash(one.tpot_seconds), _ms(one.seconds))
        table.add_row(ended, one.request, str(one.prompt_tokens), str(one.output_tokens), *times, _shares(one, width))
    legend = Text.assemble(*((f"█ {name}  ", color) for name, color in STAGE_COLORS.items()), ("░ around", "dim"))
    return Group(table, legend)


def _headline(waterfall: Waterfall) -> Text:
    line = Text.assemble((waterfall.request, "bold"), f"  {waterfall.prompt_tokens} tokens in, ")
    line.append(f"{waterfall.output_tokens} out, HTTP {waterfall.status}, {waterfall.finish or 'no answer'}")
    if waterfall.attempts > 1:
        line.append(f", {waterfall.attempts} attempts", style="yellow")
    line.append(f"\nTTFT {_ms_or_dash(waterfall.ttft_seconds)} ms, TPOT {_ms_or_dash(waterfall.tpot_seconds)} ms")
    return line.append(f"  trace {waterfall.trace}", style="dim")


def _bar(stage: Stage, whole_seconds: float, width: int) -> Text:
    """Where in the request's time it was, to an eighth of a character; never nothing."""
    if not whole_seconds:
        return Text()
    scale = width / whole_seconds
    start = min(int(stage.start_seconds * scale), width - 1)
    eighths = max(1, round(8 * min(stage.seconds * scale, width - start)))
    return Text(" " * start + "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip(), style=_color(stage))


def _shares(waterfall: Waterfall, width: int) -> Text:
    bar, position = Text(), 0.0
    for stage in waterfall.stages:
        before = round(position)
        position += width * stage.seconds / waterfall.seconds
        character = "█" if stage.kind == "paper" else "░"
        bar.append(character * (round(position) - before), style=_color(stage) if stage.kind == "paper" else "dim")
    return bar


def _color(stage: Stage) -> str:
    return STAGE_COLORS.get(stage.name, COLORS[stage.kind])


def _transfer(transfer: Transfer) -> Text:
    size = f"{transfer.bytes / 1e6:.2f} MB in {transfer.blocks} blocks"
    speed = f"{transfer.gigabytes_per_second:.2f} GB/s, {_ms(transfer.move_seconds)} ms first to last byte"
    return Text(f"KV: {size} over {transfer.transport}, {speed} of {_ms(transfer.seconds)} ms")


def _budget(budget: Budget) -> Text:
    share = 100 * budget.used_seconds / budget.target_seconds
    verdict, style = ("met", "green") if budget.met else ("missed", "red")
    line = Text.assemble(f"{budget.name} {_ms(budget.used_seconds)} of {_ms(budget.target_seconds)} ms: ")
    line.append(f"{verdict}, {share:.0f} % used", style=style)
    parts = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in budget.parts[:4])
    return line.append(f", most by {parts}" if parts else "", style="dim")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _ms_or_dash(seconds: float | None) -> str:
    return "-" if seconds is None else _ms(seconds)
