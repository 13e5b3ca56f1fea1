"""Coefficients of the latency model from measured points: least squares of the relative error, none below zero."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

SMALLEST_CONSTANT_MS = 1e-6


def fit(rows: Sequence[tuple[float, ...]], milliseconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """([a, b, c, ...], relative error of each point) for a + b * row[0] + c * row[1] + ...

    The paper's fit weighs every point by its own time: a small batch counts as much as a large one. Coefficients that
    would be negative are noise and become 0; every choice of which ones is tried. ValueError if there are fewer points
    than coefficients.
    """
    wanted = len(rows[0]) + 1 if rows else 1
    if len(rows) < wanted:
        raise ValueError(f"{len(rows)} points cannot settle {wanted} coefficients")
    times = np.array(milliseconds, dtype=float)
    design = np.column_stack([np.ones(len(rows)), np.array(rows, dtype=float)]) / times[:, None]
    scale = np.maximum(design.max(axis=0), 1e-300)
    best, best_error = np.zeros(wanted), np.inf
    for count in range(1, wanted + 1):
        for columns in combinations(range(wanted), count):
            solution = np.zeros(wanted)
            part = design[:, columns] / scale[list(columns)]
            solution[list(columns)] = np.linalg.lstsq(part, np.ones(len(rows)), rcond=None)[0] / scale[list(columns)]
            error = float(((design @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < best_error:
                best, best_error = solution, error
    errors: Any = design @ best - 1
    best[0] = max(best[0], SMALLEST_CONSTANT_MS)
    return best.tolist(), errors.tolist()
