"""What all drawings have in common. matplotlib is imported when something is drawn, not before."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.problems import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#333333", "#e4e4e4"
# Told apart by people who do not see all colours (Okabe and Ito), the yellow left out.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def new_figure(rows: int, columns: int, title: str = "") -> "tuple[Figure, Any]":
    """The figure and its array of axes, [rows, columns]. No window, no state that outlives it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * columns, 3.7 * rows), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(color=GRID)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
        axis.tick_params(labelsize=8, colors=INK)
    return figure, axes


def save(figure: "Figure", file: Path) -> None:
    """As the kind of picture that the file's name ends in. Problem if there is none such."""
    try:
        figure.savefig(file, dpi=120)
    except (ValueError, OSError) as error:
        raise Problem(f"cannot draw {file}: {error}") from error
