"""Coefficients of the latency model from measured points: least squares of the relative error, none below zero."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

SMALLEST_CONSTANT_MS = 1e-6


def fit(rows: Sequence[tuple[float, float]], milliseconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """([a, b, c], relative error of each point) for a + b * first + c * second.

    The paper's fit weighs every point by its own time: a small batch counts as much as a large one. Coefficients that
    would be negative are noise and become 0; every choice of which ones is tried. ValueError for fewer than 3 points.
    """
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} points cannot settle three coefficients")
    times = np.array(milliseconds, dtype=float)
    design = np.column_stack([np.ones(len(rows)), np.array(rows, dtype=float)]) / times[:, None]
    scale = np.maximum(design.max(axis=0), 1e-300)
    best, best_error = np.zeros(3), np.inf
    for count in (1, 2, 3):
        for columns in combinations(range(3), count):
            solution = np.zeros(3)
            part = design[:, columns] / scale[list(columns)]
            solution[list(columns)] = np.linalg.lstsq(part, np.ones(len(rows)), rcond=None)[0] / scale[list(columns)]
            error = float(((design @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < best_error:
                best, best_error = solution, error
    errors: Any = design @ best - 1
    best[0] = max(best[0], SMALLEST_CONSTANT_MS)
    return best.tolist(), errors.tolist()
